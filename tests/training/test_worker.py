from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from copier.diffusion.model import DiffusionModel
from copier.diffusion.pictures import reconstruct
from copier.diffusion.sample import sample
from copier.errors import BadCheckpoint, BadInput, BadPicture, Cancelled, TrainingFailed
from copier.ops.lora_file import read_lora
from copier.ops.merge_modules import merge_into_modules
from copier.progress import CancelToken, ProgressEvent
from copier.recipe import Schedule, TrainingSpec
from copier.training import client
from copier.training.client import BuiltinWorker, child_environment
from copier.training.protocol import ReconstructRequest, SampleRequest, TrainRequest

posix = pytest.mark.skipif(os.name == "nt", reason="signals")
SIZE = {"width": 64, "height": 64}


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=np.float32) / 255


def test_train_and_sample_do_what_the_functions_do_in_this_process(
    worker: BuiltinWorker, model: DiffusionModel, checkpoint: Path, short: TrainingSpec,
    picture: np.ndarray, picture_file: Path, tmp_path: Path,
) -> None:  # fmt: skip
    events: list[ProgressEvent] = []
    output = tmp_path / "lora.safetensors"
    request = TrainRequest(checkpoint, (picture_file,), output, short, stage="copier")
    result = worker.train(request, observer=events.append)
    assert result.output == output and len(result.losses) == 3 and result.seconds > 0
    assert result.memory is None if os.name == "nt" else result.memory > 1 << 26
    assert read_lora(output).metadata["ss_output_name"] == "lora"
    assert "loading" in events[0].message
    assert (events[-1].stage, events[-1].step) == ("copier", 3)

    drawn = worker.sample(
        SampleRequest(
            checkpoint, ("a cat", "a red star"), (1, 2), tmp_path / "out",
            loras=((output, 0.5), (output, -1.0)), steps=2, guidance=(3.0, 1.0), **SIZE,
        )
    )  # fmt: skip
    assert [path.name for path in drawn.pictures] == ["0000.png", "0001.png"]
    weights = read_lora(output).weights
    with merge_into_modules(model.weight_of, weights, -0.5):
        mine = sample(model, ["a cat", "a red star"], [1, 2], steps=2, guidance=[3.0, 1.0], **SIZE)
    for path, expected in zip(drawn.pictures, mine, strict=True):
        np.testing.assert_allclose(read(path), expected, atol=0.004)
    plain = sample(model, ["a cat", "a red star"], [1, 2], steps=2, guidance=[3.0, 1.0], **SIZE)
    assert np.abs(plain - mine).max() > 0.02


def test_a_check_draws_with_the_lora_as_it_is_and_the_verdict_ends_the_training(
    worker: BuiltinWorker, checkpoint: Path, short: TrainingSpec, picture_file: Path, tmp_path: Path
) -> None:
    """At a constant rate the LoRA of a check after two steps is that of a training of two."""
    two = tmp_path / "two.safetensors"
    worker.train(TrainRequest(checkpoint, (picture_file,), two, replace(short, steps=2)))
    wanted = SampleRequest(checkpoint, ("a cat",), (1,), tmp_path / "expected", steps=2, **SIZE)
    (expected,) = worker.sample(replace(wanted, loras=((two, 1.0),))).pictures
    (plain,) = worker.sample(replace(wanted, out=tmp_path / "plain")).pictures
    check = replace(wanted, out=tmp_path / "check")
    asked: list[tuple[int, np.ndarray]] = []

    def drawn(step: int) -> bool:
        asked.append((step, read(check.out / "0000.png")))
        return step == 4

    request = TrainRequest(
        checkpoint, (picture_file,), tmp_path / "lora.safetensors", replace(short, steps=9), save_every=2,
        check=(check,),
    )  # fmt: skip
    result = worker.train(request, on_drawn=drawn)
    assert [step for step, _ in asked] == [2, 4] and len(result.losses) == 6
    np.testing.assert_allclose(asked[0][1], read(expected), atol=0.02)
    assert np.abs(read(expected) - read(plain)).max() > 0.05
    (after,) = worker.sample(replace(wanted, out=tmp_path / "again")).pictures
    assert after.read_bytes() == plain.read_bytes()


def test_a_training_that_waits_for_a_verdict_can_be_stopped(
    worker: BuiltinWorker, checkpoint: Path, short: TrainingSpec, picture_file: Path, tmp_path: Path
) -> None:
    cancel = CancelToken()
    check = SampleRequest(checkpoint, ("a cat",), (1,), tmp_path / "check", steps=1, **SIZE)
    request = TrainRequest(
        checkpoint, (picture_file,), tmp_path / "lora.safetensors", short, save_every=1, check=(check,)
    )

    def drawn(step: int) -> bool:
        cancel.cancel()
        return False

    with pytest.raises(Cancelled):
        worker.train(request, on_drawn=drawn, cancel=cancel)
    assert not request.output.exists()
    # The verdict came late or never: the next training asks for its own.
    asked: list[int] = []
    worker.train(request, on_drawn=lambda step: bool(asked.append(step)))
    assert asked == [1, 2]


def test_the_checkpoint_is_loaded_once_and_a_lora_leaves_no_trace(
    worker: BuiltinWorker, model: DiffusionModel, checkpoint: Path, trained: Path, tmp_path: Path
) -> None:
    events: list[ProgressEvent] = []
    base = SampleRequest(checkpoint, ("a cat",), (1,), tmp_path / "0", steps=2, **SIZE)
    requests = [
        replace(base, out=tmp_path / str(number), loras=loras)
        for number, loras in enumerate([(), ((trained, 1.0),), ((trained, 0.0),)])
    ]
    pictures = [worker.sample(r, observer=events.append).pictures[0] for r in requests]
    assert sum("loading" in event.message for event in events) <= 1
    assert pictures[0].read_bytes() == pictures[2].read_bytes()
    assert np.abs(read(pictures[0]) - read(pictures[1])).max() > 0.02


def test_reconstruct_takes_pictures_and_arrays(
    worker: BuiltinWorker, model: DiffusionModel, checkpoint: Path, picture: np.ndarray,
    picture_file: Path, tmp_path: Path,
) -> None:  # fmt: skip
    array = tmp_path / "a.npy"
    np.save(array, read(picture_file))
    result = worker.reconstruct(
        ReconstructRequest(checkpoint, (picture_file, array), tmp_path / "out")
    )
    expected = reconstruct(model, read(picture_file)[None])[0]
    for path in result.pictures:
        np.testing.assert_allclose(read(path), expected, atol=0.004)


def test_pictures_of_several_sizes_are_reconstructed_in_their_order(
    worker: BuiltinWorker, model: DiffusionModel, checkpoint: Path, picture_file: Path, tmp_path: Path
) -> None:
    wide = tmp_path / "wide.png"
    Image.open(picture_file).crop((0, 8, 64, 40)).save(wide)
    files = (picture_file, wide, picture_file)
    result = worker.reconstruct(ReconstructRequest(checkpoint, files, tmp_path / "out"))
    for path, source in zip(result.pictures, files, strict=True):
        np.testing.assert_allclose(read(path), reconstruct(model, read(source)[None])[0], atol=0.004)


def test_errors_keep_their_class_and_the_worker_goes_on(
    worker: BuiltinWorker, checkpoint: Path, picture_file: Path, trained: Path, tmp_path: Path
) -> None:
    sampling = SampleRequest(checkpoint, ("a",), (1,), tmp_path / "out", steps=1, **SIZE)
    with pytest.raises(BadCheckpoint, match="is a LoRA"):
        worker.sample(replace(sampling, checkpoint=trained))
    with pytest.raises(BadInput, match="no file"):
        worker.sample(replace(sampling, loras=((tmp_path / "none", 1.0),)))
    with pytest.raises(BadPicture, match="width is 60"):
        worker.sample(replace(sampling, width=60))
    small = tmp_path / "small.png"
    Image.new("RGB", (32, 32)).save(small)
    array = tmp_path / "flat.npy"
    np.save(array, np.zeros((8, 8), np.float32))
    with pytest.raises(BadPicture, match=r"flat\.npy.*\(8, 8\)"):
        worker.reconstruct(ReconstructRequest(checkpoint, (small, array), tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert len(worker.sample(sampling).pictures) == 1


def test_a_cancelled_training_stops_at_the_next_step_and_leaves_nothing(
    worker: BuiltinWorker, checkpoint: Path, short: TrainingSpec, picture_file: Path, tmp_path: Path
) -> None:
    cancel, events = CancelToken(), list[ProgressEvent]()

    def observe(event: ProgressEvent) -> None:
        events.append(event)
        if event.step >= 1:
            cancel.cancel()

    spec = replace(short, steps=100_000, schedule=Schedule.COSINE)
    request = TrainRequest(checkpoint, (picture_file,), tmp_path / "x.safetensors", spec)
    pid = worker.pid
    with pytest.raises(Cancelled):
        worker.train(request, observer=observe, cancel=cancel)
    assert max(event.step for event in events) < 1000
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Cancelled):
        worker.train(request, cancel=cancel)
    sampling = SampleRequest(checkpoint, ("a",), (1,), tmp_path / "out", steps=1, **SIZE)
    assert worker.sample(sampling).pictures and worker.pid == pid


@posix
def test_a_killed_child_is_a_failed_training_that_says_what_to_do(
    checkpoint: Path, picture_file: Path, tmp_path: Path
) -> None:
    request = TrainRequest(checkpoint, (picture_file,), tmp_path / "x.safetensors", TrainingSpec())
    with BuiltinWorker(threads=1, device="cpu") as worker:
        assert worker.pid
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(TrainingFailed, match=r"(?s)ended by SIGKILL.*memory"):
            worker.train(request)
        with pytest.raises(TrainingFailed, match="not running"):
            worker.train(request)
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_cannot_start_quotes_what_it_said(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise ImportError('No module named spam')")
    request = SampleRequest(tmp_path, ("a",), (1,), tmp_path / "out")
    broken = BuiltinWorker(threads=1, search_path=(tmp_path,))
    with broken as worker, pytest.raises(TrainingFailed, match=r"(?s)lacks a package.*spam"):
        worker.sample(request)
    with pytest.raises(TrainingFailed, match="cannot be started"):
        BuiltinWorker(python=str(tmp_path / "none")).__enter__()


@posix
def test_the_child_dies_with_its_parent() -> None:
    code = (
        "import time\n"
        "from copier.training.client import BuiltinWorker\n"
        "with BuiltinWorker(threads=1) as worker:\n"
        "    print(worker.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(client.__file__).parents[2]
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


@posix
def test_term_ends_an_idle_child_cleanly() -> None:
    worker = BuiltinWorker(threads=1).__enter__()
    child = worker._child
    assert child
    # The handler stands once the child answers something.
    child.send('{"op": "nonsense"}')
    line = child.read_line(60)
    assert line and "not a request" in line
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait(10) and child.exit_code == 0
    worker.close()


def test_the_childs_environment_has_the_threads() -> None:
    environment = child_environment(3)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["OMP_WAIT_POLICY"] == "active"


def test_folders_come_first_on_the_childs_path_whatever_the_environment_and_the_current_folder_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An embeddable Python ignores PYTHONPATH; -E has it do that here."""
    overlay, here = tmp_path / "overlay 雪", tmp_path / "here"
    for folder, word in ((overlay, "ours"), (here, "theirs")):
        folder.mkdir()
        (folder / "spam.py").write_text(f"word = {word!r}")
    code = client._START.partition("runpy.run_module")[0] + "import spam; print(spam.word, sys.argv[1:])"
    command = [sys.executable, "-E", "-c", code, f"{overlay}|{tmp_path}", "--device"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, check=True)
    assert done.stdout.strip() == "ours ['--device']"
