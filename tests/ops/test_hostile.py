"""Damaged files, by the thousand: each is handled right or refused, and nothing is left behind.

COPIER_HOSTILE_CASES sets how many; 100,000 take some ten minutes. The counts come out with ``pytest -s``.
"""

from __future__ import annotations

import os
import random
import re
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
from tests.ops.dense_route import Terms, check_merged
from tests.ops.small_models import MODELS, Model

COUNT = int(os.environ.get("COPIER_HOSTILE_CASES", 200 if "COPIER_HOST_FLOOR" in os.environ else 1600))
SHARES = 4
MEMORY = Path("/dev/shm")
VICTIMS = (["lora"], ["lora"], ["base"], ["lora", "other"], ["lora", "base"], ["tuned"])


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: every case writes and flushes files."""
    place = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    yield place
    shutil.rmtree(place)


def operate(folder: Path, draw: random.Random) -> tuple[str, Terms]:
    """Do something at random with the files; its name, and what was merged."""
    lora, other, base, tuned = (folder / f"{one}.safetensors" for one in ("lora", "other", "base", "tuned"))
    out = folder / "out.safetensors"
    name = draw.choice(["merge", "merge", "combine", "difference", "resize", "extract", "inspect"])
    terms = [(lora, draw.choice([1.0, -1.0, 0.7, 0.0, 1000.0])), (other, draw.choice([1.0, -2.0]))]
    terms = terms[: draw.choice([1, 1, 2])]
    dtype = draw.choice(["fp16", "bf16", "fp32"])
    rank = draw.choice([None, 1, 3])
    dynamic = draw.choice([{"rank": 1}, {"sv_fro": 0.9}, {"sv_ratio": 2.0}, {"sv_cumulative": 0.8}])
    if name == "merge":
        merge(base, terms, out, dtype=draw.choice(["keep", "keep", dtype]))
    elif name == "combine":
        combine(terms, out, rank=rank, conv_rank=draw.choice([None, 1]), dtype=dtype)
    elif name == "difference":
        difference(lora, other, out, ratios=(1.0, terms[0][1]), exact=True, dtype=dtype)
    elif name == "resize":
        resize(lora, out, dtype=dtype, **dynamic)
    elif name == "extract":
        extract(tuned, base, out, conv_rank=rank, dtype=dtype, threads=1, **dynamic)
    else:
        inspect(draw.choice([lora, base]))
    return name, terms if name == "merge" else []


def damaged_files(draw: random.Random) -> tuple[dict[str, bytes], Model | None]:
    """Name -> content of two checkpoints and two LoRAs; and their model, unless (rarely) there are two."""
    models = [MODELS[draw.choice(list(MODELS))] for _ in range(2)]
    one, other = models if draw.random() < 0.1 else models[:1] * 2
    specs = {"lora": cases.lora(draw, one), "other": cases.lora(draw, one)}
    specs |= {name: cases.checkpoint(draw, other) for name in ("base", "tuned")}
    for victim in draw.choice(VICTIMS):
        cases.damaged(specs[victim], draw)
    contents = {f"{name}.safetensors": spec.encode(draw) for name, spec in specs.items()}
    return contents, one if one is other else None


def outcome(folder: Path, draw: random.Random) -> str:
    """What became of one case; fails unless it was handled right or refused, and left nothing."""
    out = folder / "out.safetensors"
    contents, model = damaged_files(draw)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    try:
        operation, terms = operate(folder, draw)
        found = f"done: {operation}"
        if operation != "inspect":
            check_output(out)
        if terms and model:
            check_merged(folder / "base.safetensors", terms, out, (*model.kohya, *model.dotted))
    except CopierError as error:
        found = f"refused: {reason(error)}"
        assert len(str(error)) < 20_000
        assert not out.exists()
    out.unlink(missing_ok=True)
    assert {path.name for path in folder.iterdir()} == set(contents)
    assert all((folder / name).read_bytes() == content for name, content in contents.items())
    return found


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("share", range(SHARES))
def test_damaged_files_are_handled_right_or_refused_and_leave_nothing(folder: Path, share: int) -> None:
    found: Counter[str] = Counter()
    for number in range(COUNT // SHARES):
        seed = share * 1_000_000 + number
        try:
            found[outcome(folder, random.Random(seed))] += 1
        except Exception as error:
            raise AssertionError(f"case {seed}") from error
    print("\n" + "\n".join(f"{count:7} {what}" for what, count in found.most_common()))
    done = sum(count for what, count in found.items() if what.startswith("done"))
    assert 0.3 < done / found.total() < 0.7, found


def reason(error: CopierError) -> str:
    """The message without what differs from case to case."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\[[^]]*\]|-?\d[\d.e+,-]*|lora_\w+|\n.*", "_", str(error))[:44]


def check_output(path: Path) -> None:
    """What was written can be read, whole, and a LoRA has finite weights."""
    with TensorReader(path) as reader:
        for key in reader.header.tensors:
            tensor = reader.tensor(key)
            if ".lora_" in key and tensor.dtype.is_floating_point:
                assert bool(torch.isfinite(tensor.float()).all())
