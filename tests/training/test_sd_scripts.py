"""One training through the fake script: what comes out, what is refused, and that nothing is left behind."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from copier.errors import BadInput, Cancelled, CopierError, TrainingFailed
from copier.progress import CancelToken, ProgressEvent
from copier.training.command_parts import PictureCopy, TrainingCommand
from copier.training.machine import Device
from copier.training.preflight import copy_picture
from copier.training.process import StopTimes
from copier.training.sd_scripts import SdScripts, Trained, TrainingJob, list_options, train

psutil = pytest.importorskip("psutil")
FAKE = Path(__file__).with_name("fake_sd_scripts.py")
CPU = Device("cpu")
QUICK = StopTimes(interrupt=0, terminate=0.3, kill=5)
MOMENTS = int(os.environ.get("COPIER_KILL_MOMENTS", "5"))
"""At which a training is stopped or killed, from its start on; 20 take over a minute."""
posix = pytest.mark.skipif(os.name == "nt", reason="signals and process groups")


@pytest.fixture(scope="session")
def lora(trained: Path) -> Path:
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
    return make_job(tmp_path, checkpoint, mine)


def make_job(folder: Path, checkpoint: Path, picture: Path) -> TrainingJob:
    """Four steps on one picture of 64 px, the U-Net's attention alone."""
    work = folder / "run" / "work"
    images, config = work / "images", work / "dataset.json"
    subset = {"image_dir": str(images), "num_repeats": 1, "caption_extension": ".text"}
    dataset = {"datasets": [{"resolution": [64, 64], "subsets": [subset]}]}
    argv = (
        *("--pretrained_model_name_or_path", str(checkpoint), "--max_train_steps", "4"),
        *("--network_module", "networks.lora", "--network_dim", "4", "--network_train_unet_only"),
        *("--dataset_config", str(config), "--output_dir", str(work / "out"), "--output_name", "trained"),
    )
    files = {config: json.dumps(dataset), images / "0000.text": "ein roter Stern, größer"}
    command = TrainingCommand("train_network.py", argv, files, (PictureCopy(picture, images / "0000.png"),))
    return TrainingJob(command, folder / "out" / "my LoRA.safetensors", folder / "run")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, lora: Path) -> Iterator[Any]:
    """Sets what the fake script does."""

    def behave(words: str = "", lora: Path = lora) -> None:
        monkeypatch.setenv("COPIER_FAKE", words)
        monkeypatch.setenv("COPIER_FAKE_LORA", str(lora))

    behave()
    yield behave


class Reader:
    """A small reader of its own: the loss at the end of a state of the bar, every other line a message."""

    broken_at: int | None = None

    def feed(self, line: str) -> Iterator[ProgressEvent]:
        if "avr_loss=" in line:
            step, steps = line.rpartition("| ")[2].split(" ")[0].split("/")
            loss = float(line.rpartition("avr_loss=")[2].partition("]")[0])
            self.broken_at = None if math.isfinite(loss) else int(step)
            yield ProgressEvent("train", int(step), int(steps), loss=loss)
        elif "%|" not in line:
            yield ProgressEvent("train", message=line)


def explain(lines: Sequence[str], exit_code: int | None) -> CopierError:
    return TrainingFailed(f"code {exit_code}, " + " / ".join(lines[-12:]))


def run(job: TrainingJob, trainer: SdScripts, **options: Any) -> Trained:
    return train(job, trainer, reader=Reader(), explain=explain, device=CPU, **options)


def with_arguments(job: TrainingJob, *arguments: str) -> TrainingJob:
    return replace(job, command=replace(job.command, argv=(*job.command.argv, *arguments)))


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
    assert not job.work.exists()
    assert not job.output.exists()
    assert [path for path in folder.rglob("*") if path.suffix == ".tmp"] == []


def test_a_training_gives_the_lora_in_its_place_and_nothing_else(
    job: TrainingJob, trainer: SdScripts, fake: Any, lora: Path
) -> None:
    mine = job.command.pictures[0].source.parent
    beside = sorted(mine.iterdir())
    done = run(job, trainer)
    assert job.output.read_bytes() == lora.read_bytes()
    assert sorted(job.output.parent.iterdir()) == [job.output]
    assert sorted(mine.iterdir()) == beside
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


def test_the_script_sees_a_copy_of_the_picture_and_the_files_of_the_command(
    job: TrainingJob, trainer: SdScripts, fake: Any
) -> None:
    probe = (
        "import sys, json, pathlib\n"
        "dataset = json.loads(pathlib.Path(sys.argv[sys.argv.index('--dataset_config') + 1]).read_text())\n"
        "folder = pathlib.Path(dataset['datasets'][0]['subsets'][0]['image_dir'])\n"
        "texts = {p.name: p.read_text('utf-8') for p in folder.iterdir() if p.suffix == '.text'}\n"
        "print('SEEN', json.dumps([sorted(p.name for p in folder.iterdir()), texts, sys.argv[1:]]))\n"
        "import shutil; shutil.copy(folder / '0000.png', folder.parents[1] / 'seen.png')\n"
    )
    (trainer.folder / "train_network.py").write_text(probe)
    with pytest.raises(TrainingFailed, match="code 0"):
        run(job, trainer)
    line = next(one for one in (job.folder / "train.log").read_text().splitlines() if one.startswith("SEEN"))
    assert json.loads(line.removeprefix("SEEN ")) == [
        ["0000.png", "0000.text"],
        {"0000.text": "ein roter Stern, größer"},
        list(job.command.argv),
    ]
    copy = Image.open(job.folder / "seen.png")
    assert copy.mode == "RGB"
    assert np.array_equal(np.asarray(copy), np.asarray(Image.open(job.command.pictures[0].source)))


@pytest.mark.parametrize("masked", [False, True])
def test_a_copy_is_upright_on_white_and_its_mask_is_its_alpha_channel(masked: bool, tmp_path: Path) -> None:
    """Orientation 6 of EXIF: the first row of the file is the right side of the picture."""
    pixels = np.zeros((64, 128, 4), np.uint8)
    pixels[0] = (255, 0, 0, 255)
    pixels[1:] = (0, 0, 255, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(np.arange(64 * 128, dtype=np.uint8).reshape(128, 64)).save(tmp_path / "mask.png")
    mask = tmp_path / "mask.png" if masked else None
    copy_picture(PictureCopy(tmp_path / "a.png", tmp_path / "copy.png", mask))
    with Image.open(tmp_path / "copy.png") as copy:
        assert (copy.size, copy.mode) == ((64, 128), "RGBA" if masked else "RGB")
        seen = np.asarray(copy)
    assert (seen[:, -1, :3] == (255, 0, 0)).all()
    assert (seen[:, 0, :3] == (255, 255, 255)).all()
    assert not masked or (seen[:, :, 3].ravel() == np.arange(64 * 128) % 256).all()


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
        f"trained-step{step:08d}.safetensors@{step}" for step in (2, 4, 6, 8, 10, 12)
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
    assert [path.name for path in done.saved] == [f"trained-step{step:08d}.safetensors" for step in (2, 4)]
    assert job.output.read_bytes() == lora.read_bytes()
    assert running(trainer.folder) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("crash", "code 1,.*ZeroDivisionError"),
        ("oom", "code 1,.*CUDA out of memory"),
        ("mute-exit", "code 0,.*model saved"),
        ("truncated", "cannot be used.*truncated"),
        ("nan", "code None,.*avr_loss=nan"),
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
    monkeypatch.setattr("copier.training.sd_scripts.copy_picture", lambda picture: None)
    with pytest.raises(TrainingFailed, match=r"code 0,.*No data found"):
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
    with pytest.raises(TrainingFailed, match=r"said nothing for 1\.5 s"):
        run(job, replace(trainer, silent_seconds=1.5))
    assert_nothing_left(job, tmp_path)


def cancelled_after(seconds: float, job: TrainingJob, trainer: SdScripts) -> None:
    """Cancel a training that long after its start."""
    token = CancelToken()
    timer = threading.Timer(seconds, token.cancel)
    timer.start()
    with pytest.raises(Cancelled):
        run(job, trainer, cancel=token)
    timer.join()


@posix
def test_cancelling_ends_the_whole_group_although_it_ignores_signals(
    job: TrainingJob, trainer: SdScripts, fake: Any, tmp_path: Path
) -> None:
    fake("slow ignore-term child")
    job = with_arguments(job, "--max_train_steps=500")
    started = time.monotonic()
    cancelled_after(1.5, job, trainer)
    assert time.monotonic() - started < 10
    assert_nothing_left(job, tmp_path)


@posix
def test_cancelling_reaches_the_child_of_accelerate(
    job: TrainingJob, trainer: SdScripts, fake: Any, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    config = tmp_path / "accelerate.yaml"
    config.write_text("distributed_type: 'NO'\nnum_machines: 1\nnum_processes: 1\nuse_cpu: true\n")
    fake("slow ignore-term")
    token, seen = CancelToken(), []

    def stop_at_a_step(event: ProgressEvent) -> None:
        if event.loss is not None and not token.cancelled:
            seen.extend(running(trainer.folder))
            token.cancel()

    with pytest.raises(Cancelled):
        several = replace(trainer, accelerate=config)
        run(with_arguments(job, "--max_train_steps=500"), several, cancel=token, observer=stop_at_a_step)
    assert len(seen) == 2
    assert_nothing_left(job, tmp_path)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("words", ["slow", "slow ignore-term child"])
def test_stopped_at_any_moment_it_leaves_no_child_and_no_part_of_a_file(
    words: str, job: TrainingJob, trainer: SdScripts, fake: Any, tmp_path: Path
) -> None:
    fake(words)
    job = with_arguments(job, "--max_train_steps=500", "--save_every_n_steps=1")
    for moment in np.linspace(0.0, 1.6, MOMENTS):
        cancelled_after(float(moment), job, trainer)
        assert_nothing_left(job, tmp_path)
        for path in (job.folder / "saved").glob("*"):
            path.unlink()


PARENT = """
import os, pickle, sys
from pathlib import Path
from copier.errors import TrainingFailed
from copier.training.machine import Device
from copier.training.sd_scripts import train
job, trainer = pickle.loads(Path(sys.argv[1]).read_bytes())
class Reader:
    broken_at = None
    def feed(self, line):
        return ()
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        try:
            train(job, trainer, reader=Reader(), explain=lambda *_: TrainingFailed(""), device=Device("cpu"))
        finally:
            os._exit(0)
    print(pid, flush=True)
    os.waitpid(pid, 0)
"""
"""Forks for every line that it reads, and trains in the fork: importing torch takes longer than the rest."""


def killed_after(seconds: float, parents: subprocess.Popen[str], trainer: SdScripts) -> None:
    """SIGKILL to a process that trains, that long after its child is there; waits for the child's end."""
    assert parents.stdin is not None and parents.stdout is not None
    print("go", file=parents.stdin, flush=True)
    parent = int(parents.stdout.readline())
    limit = time.monotonic() + 30
    while not running(trainer.folder):
        assert psutil.pid_exists(parent) and time.monotonic() < limit
        time.sleep(0.01)
    time.sleep(seconds)
    os.kill(parent, signal.SIGKILL)
    limit = time.monotonic() + 10
    while left := running(trainer.folder):
        assert time.monotonic() < limit, f"{left} outlived their parent"
        time.sleep(0.02)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("words", ["slow", "slow ignore-term"])
def test_when_its_parent_is_killed_the_child_ends_at_any_moment(
    words: str, job: TrainingJob, trainer: SdScripts, fake: Any, tmp_path: Path
) -> None:
    fake(words)
    long = with_arguments(job, "--max_train_steps=500", "--save_every_n_steps=1")
    place = tmp_path / "job.pickle"
    place.write_bytes(pickle.dumps((long, trainer)))
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parents:
        for moment in np.linspace(0.0, 0.8, MOMENTS):
            killed_after(float(moment), parents, trainer)
            assert not job.output.exists()
        assert parents.stdin is not None
        parents.stdin.close()
    fake("")
    assert run(job, trainer).output.is_file() and not job.work.exists()


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
        replace(job, command=replace(job.command, pictures=())),
        with_arguments(job, "--mixed_precision=fp16"),
        with_arguments(job, "--v2"),
    ):
        with pytest.raises(BadInput):
            run(broken, trainer)
    assert not job.folder.exists()
    with pytest.raises(BadInput, match=r"no train_network\.py"):
        run(job, replace(trainer, folder=tmp_path))


def test_nothing_of_a_run_may_lie_outside_its_folder(job: TrainingJob, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="put it there"):
        with_arguments(job, f"--output_dir={tmp_path}")
    with pytest.raises(BadInput, match="put it there"):
        replace(job, command=replace(job.command, files={**job.command.files, job.work / "../x": "text"}))


def test_an_observer_that_fails_ends_nothing(job: TrainingJob, trainer: SdScripts, fake: Any) -> None:
    def fails(*_: object) -> Any:
        raise RuntimeError("mine")

    reader = Reader()
    reader.feed = fails  # type: ignore[method-assign]
    train(job, trainer, reader=reader, explain=explain, device=CPU, observer=fails)
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
