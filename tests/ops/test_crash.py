"""Operations while the process is killed or the disk is full: the output is whole or absent."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from copier.checkpoint.writer import write_tensors
from copier.digest import file_digest
from copier.errors import BadInput
from copier.ops.combine import difference
from copier.ops.extract import extract
from copier.ops.merge import merge
from tests.checkpoint import narrow_models as narrow

resource = pytest.importorskip("resource", reason="needs limits of a process")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

KILLS = 25
"""Of each of the two operations."""
Q = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
SIDE = 1200
"""Of the weight that is changed: large enough that most kills hit the work on it."""


@pytest.fixture(scope="module")
def files(tmp_path_factory, one_thread) -> Path:
    """base, tuned and lora.safetensors; a checkpoint of some 12 MB."""
    folder = tmp_path_factory.mktemp("crash")
    draw = torch.Generator().manual_seed(4)
    shapes = {**narrow.sd1_file(), Q: (SIDE, SIDE)}
    shapes["first_stage_model.decoder.conv_in.weight"] = (SIDE, SIDE, 3, 1)
    base = {key: torch.randn(shape, generator=draw).half() for key, shape in shapes.items()}
    up, down = torch.randn(SIDE, 8, generator=draw), torch.randn(8, SIDE, generator=draw)
    write_tensors(folder / "base.safetensors", base)
    write_tensors(folder / "tuned.safetensors", {**base, Q: (base[Q].float() + up @ down).half()})
    lora = {f"{NAME}.lora_up.weight": up, f"{NAME}.lora_down.weight": down}
    write_tensors(folder / "lora.safetensors", lora)
    return folder


def merging(folder: Path, out: Path, *, overwrite: bool = False) -> None:
    merge(folder / "base.safetensors", [(folder / "lora.safetensors", 1.0)], out, overwrite=overwrite)


def extracting(folder: Path, out: Path, *, overwrite: bool = False) -> None:
    extract(folder / "tuned.safetensors", folder / "base.safetensors", out, rank=8, overwrite=overwrite)


def subtracting(folder: Path, out: Path, *, overwrite: bool = False) -> None:
    lora = folder / "lora.safetensors"
    difference(lora, lora, out, ratios=(1.0, 0.5), exact=True, dtype="fp32", overwrite=overwrite)


def child(work: Callable[..., None], folder: Path, out: Path) -> int:
    """Start ``work`` in a process of its own, which has torch already."""
    pid = os.fork()
    if pid == 0:
        try:
            work(folder, out)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


@pytest.mark.slow
@pytest.mark.parametrize("work", [merging, extracting])
def test_killed_at_any_moment_the_output_is_absent_or_whole(files: Path, tmp_path: Path, work) -> None:
    draw = random.Random(7)
    right = tmp_path / "right.safetensors"
    started = time.monotonic()
    assert os.waitpid(child(work, files, right), 0)[1] == 0
    seconds = time.monotonic() - started
    folder = tmp_path / "killed"
    folder.mkdir()
    out = folder / "right.safetensors"
    absent = 0
    for _ in range(KILLS):
        pid = child(work, files, out)
        time.sleep(draw.uniform(0.0, 1.2 * seconds))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        absent += not out.exists()
        if out.exists():
            assert file_digest(out) == file_digest(right)
            out.unlink()
    assert absent >= 3
    assert os.waitpid(child(work, files, out), 0)[1] == 0
    assert file_digest(out) == file_digest(right)
    assert [path.name for path in folder.iterdir()] == [out.name]


@pytest.mark.parametrize("work", [merging, extracting, subtracting])
def test_a_full_disk_is_an_error_and_leaves_everything_as_it_was(files: Path, tmp_path: Path, work) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"kept")
    before = {path: file_digest(path) for path in files.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(BadInput, match=r"needs .* MB in .*: free some or choose another folder"):
            work(files, out, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert out.read_bytes() == b"kept"
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]
    assert {path: file_digest(path) for path in files.iterdir()} == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, timeout=20)
    except OSError as error:
        pytest.skip(f"there is no mount here: {error}")
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode(errors='replace').strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=20)


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("work", [merging, subtracting])
def test_a_disk_that_fills_up_during_the_write_is_an_error_and_is_left_as_it_was(
    files: Path, small_disk: Path, monkeypatch, work, existing: bool
) -> None:
    """The room is asked for before the write; here somebody takes it meanwhile."""
    free = shutil.disk_usage(small_disk)._replace(free=1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free)
    out = small_disk / "out.safetensors"
    if existing:
        out.write_bytes(b"kept")
    before = {path: file_digest(path) for path in files.iterdir()}
    with pytest.raises(BadInput, match=r"needs .* MB in .*\(No space left on device\): free some or choose"):
        work(files, out, overwrite=existing)
    assert [path.read_bytes() for path in small_disk.iterdir()] == [b"kept"] * existing
    assert {path: file_digest(path) for path in files.iterdir()} == before
