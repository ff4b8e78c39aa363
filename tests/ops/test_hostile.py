"""Damaged files, by the thousand: each is handled right or refused, and nothing is left behind.

COPIER_HOSTILE_CASES sets how many; 100,000 take some minutes.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from copier.checkpoint.reader import TensorReader
from copier.errors import CopierError
from copier.ops.combine import combine, difference
from copier.ops.extract import extract
from copier.ops.inspect import inspect
from copier.ops.merge import merge
from copier.ops.resize import resize
from tests.ops import hostile_cases as cases

COUNT = int(os.environ.get("COPIER_HOSTILE_CASES", "2000"))
SHARES = 4
MEMORY = Path("/dev/shm")
OPERATIONS = ("merge", "merge", "cast", "difference", "combine", "resize", "extract", "lora", "base")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: every case writes and flushes files."""
    place = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    yield place
    shutil.rmtree(place)


def operate(name: str, folder: Path) -> None:
    lora, other, base = (folder / f"{one}.safetensors" for one in ("lora", "other", "base"))
    out = folder / "out.safetensors"
    if name == "merge":
        merge(base, [(lora, 0.7), (other, -1.0)], out, dtype="keep")
    elif name == "cast":
        merge(base, [(lora, 1.0)], out, dtype="fp16")
    elif name == "difference":
        difference(lora, other, out, exact=True, dtype="fp32")
    elif name == "combine":
        combine([(lora, 0.5), (other, 2.0)], out, rank=1)
    elif name == "resize":
        resize(lora, out, sv_fro=0.9)
    elif name == "extract":
        extract(base, folder / "tuned.safetensors", out, rank=1)
    else:
        inspect(folder / f"{name}.safetensors")


@pytest.mark.parametrize("share", range(SHARES))
def test_damaged_files_are_handled_or_refused_and_leave_nothing(folder: Path, share: int) -> None:
    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    for number in range(COUNT // SHARES):
        draw = random.Random(share * 1_000_000 + number)
        files = {"lora": cases.lora(draw), "other": cases.lora(draw), "base": cases.checkpoint(draw)}
        victim = draw.choice(["lora", "lora", "base"])
        cases.damaged(files[victim], draw)
        contents = {f"{name}.safetensors": spec.encode(draw) for name, spec in files.items()}
        contents["tuned.safetensors"] = cases.checkpoint(draw).encode(draw)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        operation = draw.choice(OPERATIONS)
        case = f"case {number} of share {share}: {operation}, {victim} damaged"
        out = folder / "out.safetensors"
        try:
            operate(operation, folder)
            found["done"] += 1
        except CopierError as error:
            found["refused"] += 1
            assert len(str(error)) < 20_000, case
            assert not out.exists(), case
        except Exception as error:
            raise AssertionError(case) from error
        if out.exists():
            check_output(out, case)
            out.unlink()
        left = {path.name for path in folder.iterdir()}
        assert left == set(contents), case
        assert all((folder / name).read_bytes() == content for name, content in contents.items()), case
    assert min(found["done"], found["refused"]) > COUNT // SHARES // 5, found


def check_output(path: Path, case: str) -> None:
    """What was written can be read, whole, and a LoRA has finite weights."""
    with TensorReader(path) as reader:
        for key in reader.header.tensors:
            tensor = reader.tensor(key)
            if key.startswith("lora_") and tensor.dtype.is_floating_point:
                assert bool(torch.isfinite(tensor.float()).all()), case
