"""The queue: order, restart, two processes, stopping, repeating, and what deleting leaves alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from copier.app.job_kinds import OPERATION, operation_payload
from copier.app.jobs import Job, JobKind, JobService, JobState
from copier.app.settings import Settings
from copier.codec import load_recipe
from copier.errors import BadInput, Cancelled, CopierError, OutOfMemory, UnknownName
from copier.pipeline.store import StageStore
from copier.progress import CancelToken, Observer, ProgressEvent
from copier.request import Edit, PictureFiles, RunRequest

PATIENCE = 30.0
KILLS = int(os.environ.get("COPIER_TEST_KILLS", "3"))
STOPS = int(os.environ.get("COPIER_TEST_STOPS", "3"))


class Toy:
    """A kind of job that does what its payload says: return it, wait for a stop, or fail."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.threads: set[int] = set()
        self.begun = threading.Event()

    def work(
        self, payload: Mapping[str, Any], settings: Settings, observer: Observer, cancel: CancelToken
    ) -> dict[str, Any]:
        self.done.append(payload["name"])
        self.threads.add(threading.get_ident())
        observer(ProgressEvent("toy", 1, 2, loss=0.5))
        self.begun.set()
        if payload.get("wait"):
            limit = time.monotonic() + PATIENCE
            while not cancel.cancelled:
                assert time.monotonic() < limit
                time.sleep(0.005)
        cancel.check()
        if "error" in payload:
            raise OutOfMemory(payload["error"], ["training.batch_size=1"])
        if "crash" in payload:
            raise ZeroDivisionError(payload["crash"])
        return {"said": payload["name"]}

    @staticmethod
    def check(payload: Mapping[str, Any], settings: Settings) -> None:
        if not payload.get("name"):
            raise BadInput("a toy needs a name")


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "data")


@pytest.fixture
def service(settings: Settings, toy: Toy) -> Iterator[JobService]:
    made = JobService(settings, kinds=(JobKind("toy", toy.work, toy.check),))
    yield made
    made.close()


def another(settings: Settings, toy: Toy) -> JobService:
    """A second service on the same folder, as another page or process has it."""
    return JobService(settings, kinds=(JobKind("toy", toy.work, toy.check),))


def ended(service: JobService, job: Job) -> Job:
    """The job when nothing more happens to it."""
    limit = time.monotonic() + PATIENCE
    while not (now := service.job(job.id)).state.ended:
        assert time.monotonic() < limit, now
        time.sleep(0.01)
    return now


def leftovers(settings: Settings) -> list[Path]:
    unfinished = (".new", ".gone", ".tmp", ".job")
    return [path for path in settings.data.rglob("*") if path.name.startswith(unfinished)]


def test_jobs_run_one_by_one_in_their_order_and_in_one_thread(service: JobService, toy: Toy) -> None:
    jobs = [service.submit_work("toy", {"name": str(number)}, title=f"job {number}") for number in range(12)]
    assert [service.runner(), service.current()] == ["nobody", jobs[0]]
    assert {job.state for job in service.jobs()} == {JobState.QUEUED}
    service.start()
    service.start()
    last = ended(service, jobs[-1])
    assert (last.state, last.outcome, last.title) == (JobState.DONE, {"said": "11"}, "job 11")
    assert toy.done == [str(number) for number in range(12)]
    assert len(toy.threads) == 1
    assert threading.get_ident() not in toy.threads
    assert [job.id for job in service.jobs()] == [job.id for job in reversed(jobs)]
    assert service.current() is None
    assert service.runner() == "here"
    assert last.seconds is not None


def test_the_queue_survives_a_restart_and_another_service_sees_the_same_jobs(
    service: JobService, toy: Toy, settings: Settings
) -> None:
    first = service.submit_work("toy", {"name": "ü"})
    service.submit_work("toy", {"name": "second"})
    later = another(settings, toy)
    assert later.jobs() == service.jobs()
    assert later.job(first.id) == first
    done = later.work()
    assert [job.state for job in done] == [JobState.DONE] * 2
    assert service.jobs() == later.jobs() == tuple(reversed(done))
    assert later.runner() == "nobody"


def test_one_of_two_services_works_the_queue_and_the_other_takes_over(
    service: JobService, toy: Toy, settings: Settings
) -> None:
    other = another(settings, toy)
    service.start()
    ended(service, service.submit_work("toy", {"name": "first"}))
    other.start()
    assert (service.runner(), other.runner()) == ("here", "elsewhere")
    for one in (another(settings, toy), service):
        with pytest.raises(BadInput, match="the queue is worked already"):
            one.work()
    service.close()
    job = other.submit_work("toy", {"name": "after"})
    assert ended(other, job).state is JobState.DONE
    assert other.runner() == "here"
    other.close()
    assert other.runner() == "nobody"


def test_what_cannot_be_done_is_refused_and_not_queued(service: JobService, settings: Settings) -> None:
    with pytest.raises(BadInput, match="a toy needs a name"):
        service.submit_work("toy", {})
    with pytest.raises(UnknownName, match=r"'toi'; did you mean 'toy'"):
        service.submit_work("toi", {"name": "x"})
    assert service.jobs() == ()
    assert not settings.jobs.exists()


@pytest.mark.parametrize("mine", [True, False], ids=["by itself", "by another process"])
def test_a_running_job_is_stopped_and_one_that_waits_never_runs(
    service: JobService, toy: Toy, settings: Settings, mine: bool
) -> None:
    stopping = service if mine else another(settings, toy)
    service.start()
    running = service.submit_work("toy", {"name": "runs", "wait": True})
    waiting = service.submit_work("toy", {"name": "waits"})
    assert toy.begun.wait(PATIENCE)
    assert stopping.cancel(waiting.id).state is JobState.STOPPED
    started = time.monotonic()
    stopping.cancel(running.id)
    assert ended(service, running).state is JobState.STOPPED
    assert time.monotonic() - started < 5
    assert stopping.cancel(running.id).state is JobState.STOPPED, "harmless when repeated"
    service.close()
    assert toy.done == ["runs"]
    assert leftovers(settings) == []


def test_a_service_that_closes_interrupts_its_job(service: JobService, toy: Toy) -> None:
    service.start()
    job = service.submit_work("toy", {"name": "x", "wait": True})
    assert toy.begun.wait(PATIENCE)
    assert service.close(timeout=PATIENCE)
    assert service.job(job.id).state is JobState.INTERRUPTED
    assert service.view(job.id).stages[0].state == "stopped"


def test_work_in_the_foreground_is_interrupted_by_its_token(service: JobService, toy: Toy) -> None:
    job = service.submit_work("toy", {"name": "x", "wait": True})
    token = CancelToken()
    threading.Thread(target=lambda: (toy.begun.wait(PATIENCE), token.cancel())).start()
    with pytest.raises(Cancelled):
        service.work(cancel=token)
    assert service.job(job.id).state is JobState.INTERRUPTED
    assert service.runner() == "nobody"


def test_a_failure_is_a_value_and_the_queue_goes_on(service: JobService) -> None:
    memory = service.submit_work("toy", {"name": "big", "error": "the card is full"})
    crash = service.submit_work("toy", {"name": "odd", "crash": "by nothing"})
    (first, second, third) = [*service.work(), service.submit_work("toy", {"name": "next"})]
    assert first.failure is not None
    assert (first.failure.error, first.failure.message) == ("OutOfMemory", "the card is full")
    assert first.failure.settings == ("training.batch_size=1",)
    assert second.failure is not None
    assert "by nothing" in second.failure.message
    assert service.job(memory.id) == first
    assert service.job(crash.id) == second
    assert service.work()[0].id == third.id


def test_the_host_gives_its_memory_back_while_a_job_runs(settings: Settings, toy: Toy) -> None:
    held = []

    @contextmanager
    def released() -> Iterator[None]:
        held.append(len(toy.done))
        try:
            yield
        finally:
            held.append(len(toy.done))

    service = JobService(settings, kinds=(JobKind("toy", toy.work),), released=released)
    service.submit_work("toy", {"name": "x"})
    service.submit_work("toy", {"name": "y", "error": "z"})
    service.work()
    assert held == [0, 1, 1, 2]


def test_a_job_is_found_by_its_id_its_number_or_its_beginning(service: JobService) -> None:
    jobs = [service.submit_work("toy", {"name": "x"}) for _ in range(3)]
    for text in (jobs[1].id, "2", "0002", jobs[1].id[:6]):
        assert service.job(text).id == jobs[1].id
    for text in ("", "7", "000", "..", "../jobs", "x"):
        with pytest.raises(UnknownName):
            service.job(text)
    service.cancel("3")
    service.remove("3")
    assert service.submit_work("toy", {"name": "y"}).id != jobs[2].id


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": "copier-job"}', "\0", '{"a":' * 5_000])
def test_a_job_that_cannot_be_read_is_left_out_and_the_others_run(
    service: JobService, toy: Toy, settings: Settings, content: str
) -> None:
    broken, sound = (service.submit_work("toy", {"name": name}) for name in ("broken", "sound"))
    (broken.folder / "job.json").write_text(content)
    (settings.jobs / "not a job").mkdir()
    assert [job.id for job in service.jobs()] == [sound.id]
    assert [job.state for job in service.work()] == [JobState.DONE]
    assert toy.done == ["sound"]


def test_a_job_of_a_kind_that_is_not_known_here_fails_with_the_reason(
    service: JobService, settings: Settings
) -> None:
    service.submit_work("toy", {"name": "x"})
    (done,) = JobService(settings).work()
    assert done.failure is not None
    assert "'toy': update the program" in done.failure.message


def test_a_view_costs_only_what_is_new_and_is_shared_by_all_pages(
    service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    from copier.app import jobs as module

    job = service.submit_work("toy", {"name": "x"})
    service.work()
    read = []
    plain = module.read_events
    monkeypatch.setattr(
        module, "read_events", lambda *given: (read.append(plain(*given).events), plain(*given))[1]
    )
    first = service.view(job.id)
    assert [one.name for one in first.stages] == ["toy"]
    assert first.stages[0].losses == ((1, 0.5),)
    assert sum(map(len, read)) > 0
    read.clear()
    assert service.view(job.id) == first
    assert sum(map(len, read)) == 0
    assert service.events(job.id).cursor == first.cursor


# Runs of a recipe, with the fake worker.


@pytest.fixture
def request_(folder: Path, worker: Any) -> RunRequest:
    return RunRequest(
        recipe=load_recipe("short.json"),
        checkpoint=folder / "base.safetensors",
        pictures={"a": PictureFiles((folder / "a.png",)), "b": Edit("grayscale")},
        out=folder / "out",
        device="cpu",
    )


@pytest.fixture
def runs(folder: Path) -> Iterator[JobService]:
    made = JobService(Settings(folder / "data"))
    yield made
    made.close()


def test_a_run_shows_its_stages_its_losses_and_its_figures(
    runs: JobService, request_: RunRequest, folder: Path
) -> None:
    job = runs.submit(request_, control=True)
    assert (job.title, job.control, job.seeds, job.request.recipe) == ("Short", True, 1, request_.recipe)
    assert not request_.out.exists(), "nothing is written before it runs"
    (done,) = runs.work()
    assert done.failure is None
    assert done.outcome is not None
    assert Path(done.outcome["result"]) == folder / "out" / "grayscale.safetensors"
    view = runs.view(job.id)
    states = {stage.name: stage.state for stage in view.stages}
    assert set(states.values()) == {"done"}
    assert {"a", "b", "copier", "gate", "lora", "control", "evaluate"} <= set(states)
    (trained,) = [stage for stage in view.stages if stage.name == "lora"]
    assert [step for step, _ in trained.losses] == [1, 2, 3]
    assert all(path.is_file() for _, path in view.samples)
    again = runs.retry(job.id)
    (repeated,) = runs.work()
    assert repeated.retry_of == job.id
    assert {stage.state for stage in runs.view(again.id).stages} == {"reused"}
    assert "same pictures, model and settings" in {stage.reason for stage in runs.view(again.id).stages}


def test_bad_input_is_refused_before_it_is_queued(
    runs: JobService, request_: RunRequest, folder: Path
) -> None:
    bad = replace(request_, pictures={**request_.pictures, "a": PictureFiles((folder / "none.png",))})
    with pytest.raises(BadInput, match=r"none\.png"):
        runs.submit(bad)
    with pytest.raises(BadInput, match="0 training seeds"):
        runs.submit(request_, seeds=0)
    assert runs.jobs() == ()


def test_a_stop_within_a_stage_leaves_whole_files_only_and_a_repetition_goes_on(
    runs: JobService, request_: RunRequest, worker: Any, doubles: ModuleType, folder: Path
) -> None:
    begun = threading.Event()

    def in_the_second_training(self: Any, cancel: CancelToken) -> None:
        if worker.calls[-1] == ("train", "lora"):
            begun.set()
            doubles.until_cancelled(cancel)

    worker.on_train = in_the_second_training
    runs.start()
    job = runs.submit(request_)
    assert begun.wait(PATIENCE)
    (stage,) = [one for one in runs.view(job.id).stages if one.state == "running"]
    assert stage.name == "lora"
    runs.cancel(job.id)
    assert ended(runs, job).state is JobState.STOPPED
    runs.close()
    assert worker.alive == 0
    assert not list((folder / "out").iterdir())
    assert not list((folder / "data" / "stages").glob(".tmp*"))
    worker.on_train = None
    worker.calls.clear()
    runs.retry(job.id)
    (done,) = runs.work()
    assert done.state is JobState.DONE
    assert ("train", "copier") not in worker.calls
    assert ("train", "lora") in worker.calls


def test_stops_at_random_moments_leave_no_child_and_no_half_file(
    runs: JobService, request_: RunRequest, worker: Any, folder: Path
) -> None:
    worker.on_train = lambda self, cancel: time.sleep(0.02)
    runs.start()
    for number in range(STOPS):
        job = runs.submit(replace(request_, out=folder / "out" / str(number)))
        time.sleep(random.uniform(0, 0.6))
        runs.cancel(job.id)
        assert ended(runs, job).state in (JobState.STOPPED, JobState.DONE)
        assert worker.alive == 0
        assert leftovers(Settings(folder / "data")) == []
        assert not [path for path in (folder / "out").rglob("*") if path.name.startswith(".")]
        shutil.rmtree(folder / "data" / "stages", ignore_errors=True)
    worker.on_train = None
    assert ended(runs, runs.retry("1")).state is JobState.DONE


def test_a_run_that_lacked_memory_is_repeated_with_what_it_offers(
    runs: JobService, request_: RunRequest, worker: Any
) -> None:
    def too_big(self: Any, cancel: CancelToken) -> None:
        raise OutOfMemory("the card's memory did not suffice", ["training.gradient_checkpointing=true"])

    worker.on_train = too_big
    job = runs.submit(request_)
    (failed,) = runs.work()
    assert failed.failure is not None
    with pytest.raises(CopierError, match="steps"):
        runs.retry(job.id, changes=("training.steps=0",))
    worker.on_train = None
    again = runs.retry(job.id, changes=failed.failure.settings)
    trainings = again.request.recipe.trainings()
    assert all(stage.training.gradient_checkpointing for stage in trainings)
    (done,) = runs.work()
    assert done.state is JobState.DONE
    compared = runs.compare(job.id, again.id)
    changed = compared["settings"]
    assert set(changed) == {
        f"request.recipe.stages.{name}.training.gradient_checkpointing" for name in ("copier", "lora")
    }
    assert set(map(tuple, changed.values())) == {(False, True)}
    assert compared["figures"]["effect at +1"][0] is None
    assert isinstance(compared["figures"]["effect at +1"][1], float)


def test_removing_says_what_it_takes_and_takes_nothing_that_is_someone_elses(
    runs: JobService, request_: RunRequest, folder: Path
) -> None:
    request_.out.mkdir()
    mine = request_.out / "a.png"
    shutil.copy(folder / "a.png", mine)
    old = time.time() - 100
    os.utime(mine, (old, old))
    job = runs.submit(request_)
    with pytest.raises(BadInput, match="queued: stop it first"):
        runs.remove(job.id)
    with pytest.raises(BadInput, match="queued: stop it first"):
        runs.retry(job.id)
    runs.work()
    use = runs.disk_use(job.id)
    assert use.job > 0 < use.output
    assert use.stages == sum(entry.size for entry in StageStore(folder / "data" / "stages").entries())
    twin = runs.submit(request_, control=True)
    runs.work()
    alone = runs.disk_use(job.id).stages
    assert 0 < alone < use.stages, "the second run used all but the evaluation without a control"
    result = folder / "out" / "grayscale.safetensors"
    changed = folder / "out" / "copier.safetensors"
    changed.write_bytes(b"the user's now")
    lone = runs.submit(replace(request_, out=folder / "lone"))
    runs.work()
    assert runs.remove(lone.id, output=True).output > 0
    assert list((folder / "lone").iterdir()) == []
    removed = runs.remove(job.id, output=True, stages=True)
    assert removed.stages == alone
    assert result in removed.files
    assert not result.exists()
    assert changed.read_bytes() == b"the user's now"
    assert mine.is_file()
    assert [one.id for one in runs.jobs()] == [twin.id]
    assert StageStore(folder / "data" / "stages").entries()
    assert leftovers(Settings(folder / "data")) == []


def test_an_operation_on_files_is_a_job_too(runs: JobService, folder: Path, doubles: ModuleType) -> None:
    second = doubles.write_small_lora(folder / "second.safetensors", seed=5)
    loras = [(Path("small.safetensors"), 1.0), (second, -0.5)]
    payload = operation_payload("combine", loras=loras, out=Path("sum.safetensors"), exact=True)
    assert json.loads(json.dumps(payload)) == payload
    job = runs.submit_work(OPERATION, payload, title="sum")
    with pytest.raises(BadInput, match=r"no file .*none\.safetensors"):
        runs.submit_work(OPERATION, operation_payload("resize", lora="none.safetensors", out="x.safetensors"))
    with pytest.raises(BadInput, match="has no 'lora'"):
        runs.submit_work(OPERATION, {"operation": "resize", "arguments": {"out": "x"}})
    with pytest.raises(UnknownName, match="did you mean 'lora'"):
        runs.submit_work(OPERATION, {"operation": "resize", "arguments": {"loro": "x"}})
    with pytest.raises(BadInput, match="a list of \\[path, weight\\]"):
        runs.submit_work(OPERATION, {"operation": "combine", "arguments": {"loras": ["x"], "out": "y"}})
    with pytest.raises(UnknownName):
        runs.submit_work(OPERATION, {"operation": "unlink", "arguments": {}})
    (done,) = runs.work()
    assert done.failure is None
    assert (folder / "sum.safetensors").is_file()
    assert done.outcome is not None
    assert done.outcome["operation"] == "combine"
    with pytest.raises(BadInput, match="exists"):
        runs.retry(job.id)


# Kills.


def in_a_fork(settings: Settings, kinds: tuple[JobKind, ...] = ()) -> int:
    """A process that works the queue until it is killed; its id."""
    child = os.fork()
    if child == 0:
        try:
            service = JobService(settings, kinds=kinds)
            service.start()
            time.sleep(PATIENCE)
        finally:
            os._exit(1)
    return child


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.usefixtures("one_thread")
def test_whenever_the_process_is_killed_the_queue_goes_on_and_nothing_is_half_there(
    request_: RunRequest, worker: Any, folder: Path
) -> None:
    worker.on_train = lambda self, cancel: time.sleep(0.02)
    settings = Settings(folder / "data")
    service = JobService(settings)
    states = set()
    for number in range(KILLS):
        job = service.submit(replace(request_, out=folder / "out" / str(number)))
        child = in_a_fork(settings)
        try:
            limit = time.monotonic() + PATIENCE
            while service.job(job.id).state is JobState.QUEUED:
                assert time.monotonic() < limit
                time.sleep(0.002)
            seconds = random.uniform(0, 0.6)
            time.sleep(seconds)
        finally:
            kill(child)
        state = service.job(job.id).state
        states.add(state)
        assert state in (JobState.INTERRUPTED, JobState.DONE)
        assert service.runner() == "nobody"
        if state is JobState.INTERRUPTED:
            again = service.retry(job.id)
            assert [done.id for done in service.work()] == [again.id]
            assert service.job(again.id).state is JobState.DONE
            assert service.job(job.id).state is JobState.INTERRUPTED
        assert leftovers(settings) == []
        assert not [path for path in (folder / "out").rglob("*") if path.name.endswith(".tmp")]
        assert service.view(job.id).job.id == job.id
        shutil.rmtree(settings.stages)
    assert JobState.INTERRUPTED in states


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.usefixtures("one_thread")
def test_when_the_process_that_works_the_queue_is_killed_another_takes_over(
    service: JobService, toy: Toy, settings: Settings
) -> None:
    cut_off = service.submit_work("toy", {"name": "cut off", "wait": True})
    waiting = service.submit_work("toy", {"name": "waiting"})
    child = in_a_fork(settings, (JobKind("toy", toy.work),))
    try:
        limit = time.monotonic() + PATIENCE
        while service.job(cut_off.id).state is not JobState.RUNNING:
            assert time.monotonic() < limit
            time.sleep(0.01)
        service.start()
        assert service.runner() == "elsewhere"
        assert service.view(cut_off.id).job.state is JobState.RUNNING
    finally:
        kill(child)
    assert ended(service, waiting).state is JobState.DONE
    assert service.job(cut_off.id).state is JobState.INTERRUPTED
    assert toy.done == ["waiting"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_whenever_a_process_that_submits_is_killed_every_job_is_whole(settings: Settings, toy: Toy) -> None:
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    job = another(settings, toy).submit_work("toy", {"name": "x" * 5_000})
                    another(settings, toy).cancel(job.id)
            finally:
                os._exit(1)
        time.sleep(random.uniform(0.02, 0.2))
        kill(child)
    service = another(settings, toy)
    last = service.submit_work("toy", {"name": "last"})
    service.work()
    assert leftovers(settings) == []
    folders = [path for path in settings.jobs.iterdir() if path.is_dir()]
    assert {job.folder for job in service.jobs()} == set(folders)
    assert service.job(last.id).state is JobState.DONE
    assert {job.state for job in service.jobs()} <= {JobState.STOPPED, JobState.DONE}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_that_submit_at_once_lose_no_job_and_share_no_number(settings: Settings, toy: Toy) -> None:
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                for place in range(5):
                    another(settings, toy).submit_work("toy", {"name": f"{number}.{place}"})
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    jobs = another(settings, toy).jobs()
    assert sorted(job.number for job in jobs) == list(range(1, 21))
    another(settings, toy).work()
    assert sorted(toy.done) == sorted(f"{number}.{place}" for number in range(4) for place in range(5))
    for number in range(4):
        mine = [name for name in toy.done if name.startswith(f"{number}.")]
        assert mine == sorted(mine), "each process' jobs run in its order"
