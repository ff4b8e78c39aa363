"""The ports inside a WebUI, against fakes of its modules: lists, drawing, memory, the queue lock."""

from __future__ import annotations

import gc
import os
import platform
import shutil
import sys
import threading
import time
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from copier.app.job_values import JobKind, Needs
from copier.app.jobs import JobService, JobState
from copier.app.ports import GenerateRequest, HostServices, allowed_path
from copier.app.settings import Settings
from copier.checkpoint.writer import write_tensors
from copier.errors import BadInput, Cancelled, CopierError, NotNow, TaggingFailed, UnknownName
from copier.host.webui import loras
from copier.host.webui.interrogation import DEEPBOORU
from copier.host.webui.registration import shown, stop_current
from copier.host.webui.services import TRAINING, WebUiHost
from copier.model_options import ModelOptions
from copier.progress import CancelToken, ignore

from .fake_webui import A1111, FORGE, REFORGE, FakeWebUi, Model

PATIENCE = 20.0
TITLE = "a pocket checkpoint"


every_memory = pytest.mark.parametrize("webui", [A1111, FORGE, REFORGE], indirect=True)


@pytest.fixture(params=[A1111, FORGE])
def webui(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeWebUi:
    return FakeWebUi(request.param, tmp_path).install(monkeypatch)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, doubles: ModuleType) -> Path:
    torch.manual_seed(0)
    return Path(doubles.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "base.safetensors"))


@pytest.fixture
def host(webui: FakeWebUi, tmp_path: Path, checkpoint: Path) -> WebUiHost:
    for name, sha256 in (("one", "ab" * 32), ("two", None)):
        place = tmp_path / "models" / "Stable-diffusion" / f"{name}.safetensors"
        shutil.copy(checkpoint, place)
        webui.add_checkpoint(place, sha256)
    return WebUiHost(Settings(tmp_path / "data"), TITLE)


def draw(host: WebUiHost, cancel: CancelToken | None = None, **values: Any) -> list[Any]:
    request = GenerateRequest(**{"prompt": "a star", "steps": 2, "width": 64, "height": 64, **values})
    return list(host.generate(request, ignore, cancel or CancelToken()))


def until(what: Any) -> None:
    limit = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.01)


@every_memory
def test_it_offers_what_the_ports_ask_for(host: WebUiHost, webui: FakeWebUi) -> None:
    ports: HostServices = host
    wanted = {name for name in vars(HostServices) if not name.startswith("_")}
    assert all(hasattr(ports, name) for name in wanted)
    assert ports.name == webui.kind
    assert ports.samplers() == ("DPM++ 2M", "Euler")


def test_lists_are_the_hosts_and_nothing_is_loaded_or_hashed_for_them(
    host: WebUiHost, webui: FakeWebUi, tmp_path: Path
) -> None:
    folder = tmp_path / "models" / "VAE"
    write_tensors(folder / "v.safetensors", {"encoder.conv_in.weight": torch.zeros(4, 3, 3, 3)})
    write_tensors(folder / "text.safetensors", {"other": torch.zeros(1)})
    found = host.checkpoints()
    assert [(one.name, one.family, one.sha256, one.embedded) for one in found] == [
        ("one", "sd1", "ab" * 32, False),
        ("two", "sd1", "", False),
    ]
    current = host.current_checkpoint()
    assert current is not None and current.path == found[0].path
    assert [one.name for one in host.vaes()] == ["v.safetensors"]
    assert host.folders().loras == webui.loras
    assert webui.loads == 0
    webui.checkpoints.clear()
    assert host.current_checkpoint() is None


def test_the_checkpoint_that_comes_with_the_program_is_known_by_its_title(
    host: WebUiHost, webui: FakeWebUi, tmp_path: Path
) -> None:
    path = tmp_path / "models" / "Stable-diffusion" / "renamed.safetensors"
    write_tensors(path, {"a": torch.zeros(1)}, metadata={"modelspec.title": TITLE})
    webui.add_checkpoint(path)
    assert [one.embedded for one in host.checkpoints()] == [False, False, True]


def test_choosing_a_checkpoint_loads_nothing_and_does_not_wait_for_the_lock(
    host: WebUiHost, webui: FakeWebUi, tmp_path: Path
) -> None:
    second = host.checkpoints()[1].path
    with webui.lock:
        host.choose_checkpoint(second)
    current = host.current_checkpoint()
    assert current is not None and current.path == second
    assert (webui.loads, webui.options.callbacks) == (0, [])
    if webui.kind == FORGE:
        assert webui.refreshed == ["yes"]
    with pytest.raises(UnknownName):
        host.choose_checkpoint(tmp_path / "none.safetensors")
    webui.options.freeze = True
    with pytest.raises(BadInput, match="keeps its settings"):
        host.choose_checkpoint(second)


def test_pictures_are_drawn_by_the_host_under_its_lock_without_the_grid(
    host: WebUiHost, webui: FakeWebUi, doubles: ModuleType
) -> None:
    lora = doubles.write_small_lora(webui.loras / "gray.safetensors")
    found = draw(host, count=2, seed=5, loras=((lora, 0.5),))
    assert [one.seed for one in found] == [5, 6]
    with Image.open(found[1].path) as image:
        assert image.size == (64, 64)
        assert image.text["parameters"] == found[1].infotext
    assert found[1].infotext == "a star <lora:gray:0.5>\nSteps: 2, Seed: 6"
    assert found[0].path.parent == host.folders().output / "drawn"
    work = webui.works[0]
    assert (work.sampler_name, work.do_not_save_samples, work.closed) == ("DPM++ 2M", True, True)
    assert work.override_settings == {}
    assert not webui.lock.mine and host.busy() == ""
    assert len(set(webui.progress.started)) == 1
    draw(host)
    assert len(set(webui.progress.started)) == 2, "a number that was used before counts as done"


def test_another_checkpoint_vae_and_clip_skip_hold_for_one_request_alone(
    host: WebUiHost, webui: FakeWebUi, tmp_path: Path
) -> None:
    second = host.checkpoints()[1].path
    vae = tmp_path / "models" / "VAE" / "v.safetensors"
    draw(host, checkpoint=second, model=ModelOptions(vae=vae, clip_skip=2))
    found = webui.works[0].override_settings
    assert found["sd_model_checkpoint"] == "two.safetensors"
    assert found["CLIP_stop_at_last_layers"] == 2
    if webui.kind == FORGE:
        assert found["forge_additional_modules"] == [str(vae)]
    else:
        assert found["sd_vae"] == "v.safetensors"


def test_what_the_host_cannot_draw_is_refused_before_its_turn(
    host: WebUiHost, webui: FakeWebUi, tmp_path: Path, doubles: ModuleType
) -> None:
    with pytest.raises(UnknownName, match="Eulr"):
        draw(host, sampler="Eulr")
    with pytest.raises(UnknownName):
        draw(host, checkpoint=tmp_path / "none.safetensors")
    with pytest.raises(BadInput, match="tells prediction"):
        draw(host, model=ModelOptions(prediction="v"))  # type: ignore[arg-type]
    assert webui.lock.taken == 0
    with pytest.raises(BadInput, match="is not in the LoRA folder"):
        draw(host, loras=((doubles.write_small_lora(tmp_path / "elsewhere.safetensors"), 1.0),))
    (webui.loras / "deep").mkdir()
    for folder in (webui.loras, webui.loras / "deep"):
        twin = doubles.write_small_lora(folder / "twin.safetensors")
    with pytest.raises(BadInput, match="2 LoRAs called 'twin'"):
        draw(host, loras=((twin, 1.0),))


def test_a_failure_or_a_stop_leaves_the_lock_free_and_nothing_behind(
    host: WebUiHost, webui: FakeWebUi
) -> None:
    def broken(work: Any) -> None:
        raise RuntimeError("no kernel image")

    webui.fail = broken
    with pytest.raises(CopierError, match="RuntimeError: no kernel image"):
        draw(host)
    cancel = CancelToken()

    def slow(work: Any) -> None:
        cancel.cancel()
        until(lambda: webui.state.interrupted)

    webui.fail = slow
    with pytest.raises(Cancelled):
        draw(host, cancel)
    webui.fail = lambda work: webui.state.interrupt()
    with pytest.raises(Cancelled):
        draw(host)
    assert not (host.folders().output / "drawn").exists()
    assert (webui.lock.owner, webui.state.job, webui.state.interrupted) == (None, "", False)
    assert len(webui.progress.started) == len(webui.progress.finished) == 3
    webui.fail = lambda work: None
    assert draw(host)


@every_memory
def test_the_model_is_in_no_memory_during_a_job_and_back_afterwards(
    host: WebUiHost, webui: FakeWebUi
) -> None:
    before = draw(host, seed=3)[0].path.read_bytes()
    model = weakref.ref(webui.model_data.sd_model)
    with host.released():
        gc.collect()
        assert model() is None, "something keeps the model alive"
        assert webui.model_data.loaded_sd_models == []
        assert webui.lock.mine
        with host.released():
            assert webui.lock.mine
        assert webui.lock.mine, "the inner block gave the lock back"
        if webui.kind == FORGE:
            assert type(webui.model_data.sd_model) is webui.models.FakeInitialModel
            assert (webui.model_data.forge_hash, webui.unloaded) == ("", ["all"])
        with pytest.raises(NotNow):
            threaded(lambda: draw(host))
    assert webui.lock.owner is None
    assert webui.loads == (1 if webui.kind == FORGE else 2)
    assert draw(host, seed=3)[0].path.read_bytes() == before
    assert webui.loads == 2


def resident() -> int:
    """Of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep less of what is freed")
def test_in_a_job_the_system_has_what_the_host_freed(host: WebUiHost, webui: FakeWebUi) -> None:
    draw(host)
    # After so large a block glibc keeps smaller ones; every twentieth is still in use.
    b"x" * (31 << 20)
    blocks = [b"x" * (1 << 20) for _ in range(301)]
    full = resident()
    blocks = blocks[::20]
    kept = resident()
    assert full - kept < 100, "it gives them back by itself"
    with host.released():
        assert kept - resident() > 150
    assert blocks


def threaded(action: Any) -> None:
    """Do it in another thread; its failure is raised here."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def test_a_host_that_loaded_nothing_gets_nothing_loaded(host: WebUiHost, webui: FakeWebUi) -> None:
    with host.released():
        pass
    assert webui.loads == 0
    assert draw(host)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError, CopierError])
def test_on_every_way_out_of_a_job_the_host_is_as_before(
    host: WebUiHost, webui: FakeWebUi, kind: type[BaseException]
) -> None:
    draw(host)
    with pytest.raises(kind), host.released():
        raise kind("in the middle")
    assert (webui.lock.owner, webui.state.job, host.turns.taken) == (None, "", False)
    assert draw(host)


@every_memory
def test_a_model_that_cannot_be_loaded_again_does_not_fail_the_job(
    host: WebUiHost, webui: FakeWebUi, caplog: pytest.LogCaptureFixture
) -> None:
    draw(host)
    reload = webui.models.reload_model_weights

    def no_memory() -> None:
        raise MemoryError

    webui.models.reload_model_weights = no_memory
    with host.released():
        pass
    assert webui.lock.owner is None
    if webui.kind != FORGE:
        assert "could not load its checkpoint again" in caplog.text
    webui.models.reload_model_weights = reload
    assert draw(host)


def test_a_failure_while_memory_is_freed_gives_the_lock_back(
    host: WebUiHost, webui: FakeWebUi, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(host)

    def fails() -> None:
        raise RuntimeError("cannot forget")

    monkeypatch.setattr(loras, "forget", fails)
    with pytest.raises(RuntimeError), host.released():
        raise AssertionError("the block must not run")
    assert webui.lock.owner is None
    assert draw(host)


def test_a_job_waits_for_the_hosts_own_generation(host: WebUiHost, webui: FakeWebUi) -> None:
    order = []
    webui.lock.acquire()

    def job() -> None:
        with host.released():
            order.append("job")

    thread = threading.Thread(target=job)
    thread.start()
    until(lambda: host.turns.taken)
    time.sleep(0.05)
    order.append("generation ends")
    webui.lock.release()
    thread.join(PATIENCE)
    assert order == ["generation ends", "job"]


def service(host: WebUiHost, tmp_path: Path, work: Any, needs: Needs) -> JobService:
    made = JobService(
        Settings(tmp_path / "data"), kinds=(JobKind("toy", work, needs=needs),),
        released=host.released, turn=host.turn,
    )  # fmt: skip
    host.watch_jobs(lambda: stop_current(made), lambda: shown(made))
    return made


def test_the_hosts_progress_shows_the_job_and_its_interrupt_stops_it(
    host: WebUiHost, webui: FakeWebUi, tmp_path: Path, doubles: ModuleType
) -> None:
    draw(host)

    def work(payload: Any, settings: Any, observer: Any, cancel: CancelToken) -> Any:
        assert webui.lock.mine
        until(lambda: TRAINING in (webui.state.textinfo or ""))
        assert (webui.state.job, webui.state.job_count) == (TRAINING, 1)
        webui.state.job = ""  # as another page's call leaves it
        until(lambda: webui.state.job == TRAINING)
        webui.state.interrupt()
        doubles.until_cancelled(cancel)
        cancel.check()

    jobs = service(host, tmp_path, work, Needs.MEMORY)
    job = jobs.submit_work("toy", {}, title="Gray")
    assert [one.state for one in jobs.work()] == [JobState.STOPPED]
    assert jobs.job(job.id).state is JobState.STOPPED
    assert (webui.lock.owner, webui.state.job, webui.state.textinfo) == (None, "", None)
    assert draw(host)


@pytest.mark.parametrize("needs", list(Needs))
def test_a_job_gets_of_the_host_what_its_kind_needs(
    host: WebUiHost, webui: FakeWebUi, tmp_path: Path, needs: Needs
) -> None:
    draw(host)
    seen = []

    def work(*_: Any) -> Any:
        seen.append((webui.lock.mine, isinstance(webui.model_data.sd_model, Model)))
        return {}

    jobs = service(host, tmp_path, work, needs)
    jobs.submit_work("toy", {})
    jobs.work()
    expected = {Needs.MEMORY: (True, False), Needs.TURN: (True, True), Needs.NOTHING: (False, True)}
    assert seen == [expected[needs]]


@every_memory
def test_a_lora_that_came_again_under_its_name_is_read_anew(host: WebUiHost, webui: FakeWebUi) -> None:
    draw(host)
    with webui.lock:  # the host draws; a page must not wait for it
        host.refresh()
        assert webui.networks.listed
    model = webui.model_data.sd_model
    if webui.kind != A1111:
        until(lambda: model.forge_objects.clip.patcher.lora_loader.loaded_hash == "stale")
        assert model.current_lora_hash == "stale"
        assert webui.kind == REFORGE or webui.networks.cleared
    else:
        until(lambda: model.layers[0].network_current_names == (("", 0.0, 0.0, None),))
        assert not hasattr(model.layers[1], "network_current_names")
        assert (webui.networks.networks_in_memory, webui.networks.loaded_networks) == ({}, [])
    until(lambda: webui.lock.owner is None)


def test_without_the_hosts_extension_for_loras_nothing_fails(
    host: WebUiHost, webui: FakeWebUi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "networks")
    host.refresh()
    with host.released():
        pass


def test_interrogators_take_their_turn_and_their_failures_are_told(
    host: WebUiHost, webui: FakeWebUi, tmp_path: Path, doubles: ModuleType
) -> None:
    picture = doubles.write_picture(tmp_path / "a.png")
    clip, deepbooru = host.captioners().values()
    assert clip([picture], observer=ignore, cancel=CancelToken()) == ["a picture of 64 px"]
    assert deepbooru([picture, picture], observer=ignore, cancel=CancelToken()) == ["1girl, smile"] * 2
    webui.modules["modules.shared"].interrogator.interrogate = lambda image: "a picture<error>"
    with pytest.raises(TaggingFailed, match="its console says why"):
        clip([picture], observer=ignore, cancel=CancelToken())
    assert webui.lock.owner is None


def test_a_tagger_whose_model_cannot_be_fetched_fails_each_time_and_works_when_it_can(
    host: WebUiHost, webui: FakeWebUi, tmp_path: Path, doubles: ModuleType
) -> None:
    picture = doubles.write_picture(tmp_path / "a.png")
    deepbooru = host.captioners()[DEEPBOORU]
    host_tagger = webui.modules["modules.deepbooru"].model
    fetched, host_tagger.files = host_tagger.files, []
    for _ in range(2):
        with pytest.raises(TaggingFailed, match=r"IndexError.*it fetches its models"):
            deepbooru([picture], observer=ignore, cancel=CancelToken())
    assert host_tagger.tag(None) == "", "the host itself takes it for loaded"
    host_tagger.files = fetched
    assert deepbooru([picture], observer=ignore, cancel=CancelToken()) == ["1girl, smile"]


@pytest.mark.parametrize(
    ("options", "restricted", "keeps"),
    [
        ({}, False, False),
        ({"share": True}, True, True),
        ({"listen": True}, True, True),
        ({"server_name": "box"}, True, True),
        ({"ngrok": "token"}, True, True),
        ({"listen": True, "enable_insecure_extension_access": True}, False, False),
        ({"hide_ui_dir_config": True}, False, True),
        ({"hide_ui_dir_config": True, "listen": True, "enable_insecure_extension_access": True}, False, True),
    ],
)
def test_the_hosts_security_switches_hold(
    host: WebUiHost, webui: FakeWebUi, tmp_path: Path, options: Any, restricted: bool, keeps: bool
) -> None:
    vars(webui.cmd_opts).update(options)
    found = host.security()
    assert (found.restricted, found.keeps_paths) == (restricted, keeps)
    inside = webui.loras / "x.safetensors"
    assert allowed_path(inside, host) == inside.resolve()
    if keeps:
        with pytest.raises(BadInput, match="outside the folders"):
            allowed_path(Path("/etc/passwd"), host)
