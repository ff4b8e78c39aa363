"""One training through the fake script: what comes out, what is refused, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from copier.errors import BadInput, Cancelled, CopierError, TrainingFailed
from copier.progress import CancelToken, ProgressEvent
from copier.training.command_parts import TrainingCommand, TrainingPicture
from copier.training.machine import Device
from copier.training.process import StopTimes
from copier.training.sd_scripts import SdScripts, Trained, TrainingJob, list_options, train

psutil = pytest.importorskip("psutil")
FAKE = Path(__file__).with_name("fake_sd_scripts.py")
CPU = Device("cpu")
QUICK = StopTimes(interrupt=0, terminate=0.3, kill=5)
posix = pytest.mark.skipif(os.name == "nt", reason="signals and process groups")


@pytest.fixture(scope="session")
def lora(model: Any, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the tiny checkpoint, with all its attention modules."""
    return trained


@pytest.fixture
def trainer(tmp_path: Path) -> SdScripts:
    folder = tmp_path / "sd scripts 雪"
    folder.mkdir()
    shutil.copy(FAKE, folder / "train_network.py")
    return SdScripts(sys.executable, folder, threads=1, times=QUICK)


@pytest.fixture
def job(tmp_path: Path, checkpoint: Path, picture_file: Path) -> TrainingJob:
    mine = tmp_path / "my pictures ä" / "a.png"
    mine.parent.mkdir()
    shutil.copy(picture_file, mine)
    dataset = {
        "general": {"caption_extension": ".text"},
        "datasets": [{"resolution": [64, 64], "subsets": [{"image_dir": "images", "num_repeats": 1}]}],
    }
    argv = (
        *("--pretrained_model_name_or_path", str(checkpoint), "--max_train_steps", "4"),
        *("--network_module", "networks.lora", "--network_dim", "4", "--network_train_unet_only"),
    )
    return TrainingJob(
        TrainingCommand("train_network.py", argv, dataset),
        (TrainingPicture(mine, "a red star"),),
        tmp_path / "out" / "my LoRA.safetensors",
        tmp_path / "run",
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, lora: Path) -> Iterator[Any]:
    """Sets what the fake script does."""

    def behave(words: str = "", lora: Path = lora) -> None:
        monkeypatch.setenv("COPIER_FAKE", words)
        monkeypatch.setenv("COPIER_FAKE_LORA", str(lora))

    behave()
    yield behave


def events_of(text: str) -> Iterator[ProgressEvent]:
    """A small reader of its own: the loss at the end of a state of the bar."""
    if "avr_loss=" in text:
        step, steps = text.split("| ")[-1].split(" ")[0].split("/")
        loss = text.rpartition("avr_loss=")[2].partition("]")[0]
        yield ProgressEvent("train", int(step), int(steps), loss=float(loss))
    elif "%|" not in text:
        yield ProgressEvent("train", message=text)


def remedy_of(exit_code: int | None, lines: Any) -> str:
    return "lower the resolution" if "out of memory" in "\n".join(lines) else ""


def run(job: TrainingJob, trainer: SdScripts, **options: Any) -> Trained:
    return train(job, trainer, read_line=events_of, remedy=remedy_of, device=CPU, **options)


def with_arguments(job: TrainingJob, *arguments: str) -> TrainingJob:
    return replace(job, command=replace(job.command, argv=(*job.command.argv, *arguments)))


def descendants() -> list[Any]:
    """Running processes that this one or its children started."""
    mine = psutil.Process().children(recursive=True)
    return [one for one in mine if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def running(marker: Path) -> list[int]:
    """Processes that have ``marker`` in their command line, whoever their parent is; no zombies."""
    found = []
    for one in psutil.process_iter(["pid", "cmdline", "status"]):
        words = one.info["cmdline"] or []
        if any(str(marker) in word for word in words) and one.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(one.info["pid"])
    return found


def assert_nothing_left(job: TrainingJob, folder: Path) -> None:
    assert running(folder) == []
    assert not (job.folder / "work").exists()
    assert not job.output.exists()
    assert [path for path in folder.rglob("*") if path.suffix == ".tmp"] == []


def test_a_training_gives_the_lora_in_its_place_and_nothing_else(
    job: TrainingJob, trainer: SdScripts, fake: Any, lora: Path
) -> None:
    beside = sorted(job.pictures[0].path.parent.iterdir())
    done = run(job, trainer)
    assert job.output.read_bytes() == lora.read_bytes()
    assert sorted(job.output.parent.iterdir()) == [job.output]
    assert sorted(job.pictures[0].path.parent.iterdir()) == beside
    assert sorted(path.name for path in job.folder.iterdir()) == ["train.log"]
    assert (done.output, done.samples, done.saved) == (job.output, (), ())


def test_events_come_from_both_streams_and_the_log_has_lines_but_no_bars(
    job: TrainingJob, trainer: SdScripts, fake: Any
) -> None:
    events: list[ProgressEvent] = []
    done = run(job, trainer, observer=events.append)
    losses = [(event.step, event.steps, event.loss) for event in events if event.loss is not None]
    assert losses == [(1, 4, 0.5), (2, 4, 0.25), (3, 4, 0.167), (4, 4, 0.125)]
    messages = [event.message for event in events]
    assert "running training / 学習開始" in messages
    assert any("no GPU" in message for message in messages)
    written = done.log.read_text(encoding="utf-8")
    assert "running training / 学習開始" in written and "1/4" not in written


def test_the_script_sees_copies_with_captions_and_whole_paths(
    job: TrainingJob, trainer: SdScripts, fake: Any
) -> None:
    probe = (
        "import sys, json, pathlib\n"
        "given = dict(a[2:].split('=', 1) for a in sys.argv if a.startswith('--') and '=' in a)\n"
        "dataset = json.loads(pathlib.Path(given['dataset_config']).read_text())\n"
        "folder = pathlib.Path(dataset['datasets'][0]['subsets'][0]['image_dir'])\n"
        "files = {p.name: p.read_text() if p.suffix == '.text' else '' for p in folder.iterdir()}\n"
        "print('SEEN', json.dumps([str(folder), files, dataset, given]))\n"
    )
    (trainer.folder / "train_network.py").write_text(probe)
    job = replace(job, command=replace(job.command, sample_prompts=("a cat --w 64",)))
    with pytest.raises(TrainingFailed, match="wrote no LoRA"):
        run(job, trainer)
    line = next(one for one in (job.folder / "train.log").read_text().splitlines() if one.startswith("SEEN"))
    folder, files, dataset, given = json.loads(line.removeprefix("SEEN "))
    assert Path(folder) == job.folder / "work" / "images"
    assert files == {"0000.png": "", "0000.text": "a red star"}
    assert dataset["datasets"][0]["subsets"][0]["caption_extension"] == ".text"
    assert given["output_name"] == "my LoRA"
    assert given["sample_prompts"].endswith("prompts.txt")


def test_samples_and_saved_loras_are_reported_while_it_trains_and_are_kept(
    job: TrainingJob, trainer: SdScripts, fake: Any, lora: Path
) -> None:
    fake("slow")
    seen: list[tuple[str, bool]] = []
    job = with_arguments(job, "--save_every_n_steps=2", "--sample_every_n_steps=2", "--max_train_steps=12")

    def saved(path: Path, step: int) -> bool:
        seen.append((f"{path.name}@{step}", job.output.exists()))
        return False

    samples: list[Path] = []
    done = run(job, trainer, on_sample=samples.append, on_saved=saved)
    assert [name for name, _ in seen] == [
        f"my LoRA-step{step:08d}.safetensors@{step}" for step in (2, 4, 6, 8, 10, 12)
    ]
    assert not any(ended for _, ended in seen)
    assert list(done.samples) == samples and len(samples) == 6
    assert all(Image.open(path).size == (1, 1) for path in samples)
    assert all(path.read_bytes() == lora.read_bytes() for path in done.saved)


def test_a_saved_lora_that_is_good_enough_ends_the_training(
    job: TrainingJob, trainer: SdScripts, fake: Any, lora: Path
) -> None:
    fake("slow")
    job = with_arguments(job, "--save_every_n_steps=2", "--max_train_steps=500")
    done = run(job, trainer, on_saved=lambda path, step: step >= 4)
    assert [path.name for path in done.saved] == [f"my LoRA-step{step:08d}.safetensors" for step in (2, 4)]
    assert job.output.read_bytes() == lora.read_bytes()
    assert running(trainer.folder) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("crash", "ended with exit code 1.*ZeroDivisionError"),
        ("oom", "lower the resolution.*CUDA out of memory"),
        ("mute-exit", "ended as if all were well, but wrote no LoRA"),
        ("truncated", "cannot be used.*truncated"),
        ("nan", "the loss is no number"),
    ],
)
def test_a_failure_says_what_happened_and_leaves_nothing(
    words: str, says: str, job: TrainingJob, trainer: SdScripts, fake: Any, tmp_path: Path
) -> None:
    fake(words)
    if words == "nan":
        fake("nan slow")
        job = with_arguments(job, "--max_train_steps=500")
    with pytest.raises(TrainingFailed, match=f"(?s){says}"):
        run(job, trainer)
    assert_nothing_left(job, tmp_path)


def test_an_empty_dataset_ends_well_in_the_script_and_is_a_failure_here(
    job: TrainingJob, trainer: SdScripts, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("copier.training.sd_scripts._write_pictures", lambda job, work: None)
    with pytest.raises(TrainingFailed, match=r"(?s)wrote no LoRA.*No data found"):
        run(job, trainer)


def test_a_lora_that_is_zero_or_of_other_modules_is_no_success(
    job: TrainingJob, trainer: SdScripts, fake: Any, lora: Path, tmp_path: Path
) -> None:
    from copier.algebra.lora import LoraWeights
    from copier.ops.lora_file import read_lora, write_lora

    weights = read_lora(lora).weights
    zero, part = tmp_path / "zero.safetensors", tmp_path / "part.safetensors"
    write_lora(zero, LoraWeights({name: replace(d, up=d.up * 0) for name, d in weights.items()}), {})
    write_lora(part, LoraWeights(dict(list(weights.items())[1:])), {})
    fake(lora=zero)
    with pytest.raises(TrainingFailed, match="zero everywhere"):
        run(job, trainer)
    fake(lora=part)
    with pytest.raises(TrainingFailed, match="1 of 192 weights are not in it"):
        run(job, trainer)
    assert not job.output.exists()


@posix
@pytest.mark.parametrize("words", ["hang", "hang ignore-term child"])
def test_a_child_that_says_nothing_is_ended(
    words: str, job: TrainingJob, trainer: SdScripts, fake: Any, tmp_path: Path
) -> None:
    fake(words)
    before = len(descendants())
    with pytest.raises(TrainingFailed, match=r"wrote nothing for 1\.5 s"):
        run(job, replace(trainer, silent_seconds=1.5))
    assert_nothing_left(job, tmp_path)
    assert len(descendants()) == before


def cancelled_after(seconds: float, job: TrainingJob, trainer: SdScripts) -> float:
    """Cancel a training that long after its start; how long it took to end then."""
    token = CancelToken()
    timer = threading.Timer(seconds, token.cancel)
    timer.start()
    with pytest.raises(Cancelled):
        run(job, trainer, cancel=token)
    timer.join()
    return seconds


@posix
def test_cancelling_ends_the_whole_group_although_it_ignores_signals(
    job: TrainingJob, trainer: SdScripts, fake: Any, tmp_path: Path
) -> None:
    fake("slow ignore-term child")
    before = len(descendants())
    job = with_arguments(job, "--max_train_steps=500")
    started = time.monotonic()
    cancelled_after(1.5, job, trainer)
    assert time.monotonic() - started < 10
    assert_nothing_left(job, tmp_path)
    assert len(descendants()) == before


@posix
@pytest.mark.slow
@pytest.mark.parametrize("words", ["slow", "slow ignore-term child"])
def test_stopped_at_any_moment_it_leaves_no_child_and_no_part_of_a_file(
    words: str, job: TrainingJob, trainer: SdScripts, fake: Any, tmp_path: Path
) -> None:
    fake(words)
    before = len(descendants())
    job = with_arguments(job, "--max_train_steps=500", "--save_every_n_steps=1")
    for moment in np.linspace(0.0, 1.6, 20):
        cancelled_after(float(moment), job, trainer)
        assert_nothing_left(job, tmp_path)
        assert len(descendants()) == before
        for path in (job.folder / "saved").glob("*"):
            path.unlink()


PARENT = """
import pickle, sys
from pathlib import Path
from copier.training.machine import Device
from copier.training.sd_scripts import train
job, trainer = pickle.loads(Path(sys.argv[1]).read_bytes())
train(job, trainer, read_line=lambda text: [], remedy=lambda code, lines: "", device=Device("cpu"))
"""


def killed_after(seconds: float, job: TrainingJob, trainer: SdScripts, folder: Path) -> None:
    """SIGKILL to a process that trains, that long after its child is there; waits for the child's end."""
    import pickle

    place = folder / "job.pickle"
    place.write_bytes(pickle.dumps((job, trainer)))
    with subprocess.Popen([sys.executable, "-c", PARENT, str(place)]) as parent:
        limit = time.monotonic() + 60
        while not running(trainer.folder):
            assert parent.poll() is None and time.monotonic() < limit
            time.sleep(0.02)
        time.sleep(seconds)
        parent.send_signal(signal.SIGKILL)
    limit = time.monotonic() + 10
    while left := running(trainer.folder):
        assert time.monotonic() < limit, f"{left} outlived their parent"
        time.sleep(0.05)
    assert not job.output.exists()


@posix
@pytest.mark.slow
@pytest.mark.parametrize("words", ["slow", "slow ignore-term"])
def test_when_its_parent_is_killed_the_child_ends_at_any_moment(
    words: str, job: TrainingJob, trainer: SdScripts, fake: Any, tmp_path: Path
) -> None:
    fake(words)
    job = with_arguments(job, "--max_train_steps=500", "--save_every_n_steps=1")
    for moment in np.linspace(0.0, 0.6, 10):
        killed_after(float(moment), job, trainer, tmp_path)
    fake("")
    done = run(replace(job, command=replace(job.command, argv=job.command.argv[:-2])), trainer)
    assert done.output.is_file() and not (job.folder / "work").exists()


def test_what_is_there_already_is_never_overwritten(job: TrainingJob, trainer: SdScripts, fake: Any) -> None:
    job.output.parent.mkdir()
    job.output.write_bytes(b"mine")
    with pytest.raises(BadInput, match="exists"):
        run(job, trainer)
    assert job.output.read_bytes() == b"mine"


def test_nothing_is_started_where_the_check_before_fails(
    job: TrainingJob, trainer: SdScripts, fake: Any, tmp_path: Path
) -> None:
    for broken in (
        replace(job, pictures=(replace(job.pictures[0], caption=" \n"),)),
        replace(job, pictures=()),
        replace(job, pictures=(replace(job.pictures[0], folder="other"),)),
        with_arguments(job, "--mixed_precision=fp16"),
        with_arguments(job, "--v2"),
    ):
        with pytest.raises(CopierError):
            run(broken, trainer)
    assert not job.folder.exists()
    with pytest.raises(BadInput, match=r"no train_network\.py"):
        run(job, replace(trainer, folder=tmp_path))


def test_own_options_in_the_arguments_are_refused(job: TrainingJob) -> None:
    with pytest.raises(BadInput, match="set by the run itself"):
        with_arguments(job, "--output_dir=/elsewhere")


def test_an_observer_that_fails_ends_nothing(job: TrainingJob, trainer: SdScripts, fake: Any) -> None:
    def fails(*_: object) -> Any:
        raise RuntimeError("mine")

    train(job, trainer, read_line=fails, remedy=remedy_of, device=CPU, observer=fails)
    assert job.output.is_file()


def test_options_of_the_script_are_listed(trainer: SdScripts) -> None:
    options = list_options(trainer, "train_network.py")
    assert "--network_dim" in options and "-h" in options
    (trainer.folder / "broken.py").write_text("import nothing_of_that_name")
    with pytest.raises(TrainingFailed, match="nothing_of_that_name"):
        list_options(trainer, "broken.py")


def test_what_a_host_left_of_accelerate_does_not_reach_the_child(
    trainer: SdScripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "1")
    environment = trainer.environment()
    assert environment["KEPT"] == "1" and environment["OMP_NUM_THREADS"] == "1"
    assert not {"ACCELERATE_MIXED_PRECISION", "LOCAL_RANK", "WORLD_SIZE"} & set(environment)
