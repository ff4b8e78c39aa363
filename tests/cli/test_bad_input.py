"""Bad input: exit code 2, a message with value, limit and remedy, and nothing written anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from copier.checkpoint.reader import TensorReader
from copier.checkpoint.writer import write_tensors

PAIR = ("--a", "a.png", "--b", "b.png")
RUN = ("run", "short.json", "--checkpoint", "base.safetensors")


FILES = 'training.captions={"policy": "files"}'


def captions(a: str, b: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "a.txt").write_text(a)
        (folder / "b.txt").write_bytes(b)

    return write


def truncated(folder: Path) -> None:
    content = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])


def text_file(folder: Path) -> None:
    (folder / "text.png").write_text("no picture")


def sized(name: str, width: int, height: int) -> Callable[[Path], None]:
    return lambda folder: Image.new("RGB", (width, height), "red").save(folder / name)


def copied(source: str, target: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copy(folder / source, folder / target)  # type: ignore[return-value]


def gray(folder: Path) -> None:
    Image.new("RGB", (64, 64), (90, 90, 90)).save(folder / "gray.png")


def truncated_checkpoint(folder: Path) -> None:
    content = (folder / "base.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(content[:-100])


def incomplete(folder: Path) -> None:
    with TensorReader(folder / "base.safetensors") as reader:
        tensors = {key: reader.tensor(key) for key in reader.header.tensors}
    del tensors["model.diffusion_model.out.2.bias"]
    write_tensors(folder / "part.safetensors", tensors)


def inpainting(folder: Path) -> None:
    with TensorReader(folder / "base.safetensors") as reader:
        tensors = {key: reader.tensor(key) for key in reader.header.tensors}
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(8, 9, 3, 3)
    write_tensors(folder / "paint.safetensors", tensors)


def pickled(folder: Path) -> None:
    (folder / "model.ckpt").write_bytes(b"PK\x03\x04" + bytes(100))


def other_tensors(folder: Path) -> None:
    write_tensors(folder / "other.safetensors", {"weight": torch.zeros(4)})


def sdxl_checkpoint(folder: Path) -> None:
    keys = ("model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.1.model.ln_final.weight")
    tensors = {key: torch.zeros(4, 4) for key in (*keys, "first_stage_model.decoder.conv_in.weight")}
    write_tensors(folder / "xl.safetensors", tensors)


def sdxl_lora(folder: Path) -> None:
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    tensors = {
        f"{name}.lora_up.weight": torch.zeros(4, 2),
        f"{name}.lora_down.weight": torch.zeros(2, 4),
        f"{name}.alpha": torch.tensor(2.0),
    }
    write_tensors(folder / "xl-lora.safetensors", tensors)


def foreign_report(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "report.json").write_text('{"mine": true}')


def file_named(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text("a file")  # type: ignore[return-value]


def recipe_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        recipe = json.loads((folder / "short.json").read_text())
        change(recipe)
        (folder / "bad.json").write_text(json.dumps(recipe))

    return write


class Case(NamedTuple):
    """Arguments, words that the message must have, and what has to be there first."""

    arguments: tuple[str, ...]
    words: tuple[str, ...]
    prepare: Callable[[Path], Any] = lambda folder: None


def run(*arguments: str, words: tuple[str, ...], prepare: Any = lambda folder: None) -> Case:
    return Case((*RUN, *arguments), words, prepare)


CASES = {
    # pictures
    "no A file": run("--a", "none.png", "--b", "b.png", words=("none.png", "check the path")),
    "no B file": run("--a", "a.png", "--b", "none.png", words=("none.png", "check the path")),
    "a folder and a picture": run("--a", ".", "--b", "b.png", words=("originals", "1 changed picture")),
    "not an image": run("--a", "a.png", "--b", "text.png", words=("text.png", "PNG"), prepare=text_file),
    "truncated": run("--a", "cut.png", "--edit", "outline", words=("cut.png", "cut off"), prepare=truncated),
    "two sizes": run(
        "--a",
        "a.png",
        "--b",
        "wide.png",
        words=("64 x 64", "128 x 64", "one size"),
        prepare=sized("wide.png", 128, 64),
    ),
    "no multiple of 64": run(
        "--a",
        "odd.png",
        "--edit",
        "outline",
        words=("100 x 64", "multiples of 64", "128 x 64"),
        prepare=sized("odd.png", 100, 64),
    ),
    "A and B equal": run(
        "--a", "a.png", "--b", "same.png", words=("identical", "edit B"), prepare=copied("a.png", "same.png")
    ),
    "an edit that changes nothing": run(
        "--a", "gray.png", "--edit", "grayscale", words=("identical", "stronger edit"), prepare=gray
    ),
    "B of another size than the A to be drawn": run(
        "--a-prompt", "x", "--a-size", "128", "--b", "b.png", words=("128 x 128", "64 x 64", "one size")
    ),
    # which pair
    "no A": run("--b", "b.png", words=("A is missing", "--a FILE", "--a-prompt")),
    "two As": run(
        "--a", "a.png", "--a-prompt", "x", "--b", "b.png", words=("both --a and --a-prompt", "either")
    ),
    "no B": run("--a", "a.png", words=("B is missing", "--b FILE", "--edit")),
    "two Bs": run(*PAIR, "--edit", "blur", words=("both --b and --edit", "either")),
    "a seed for a file": run(*PAIR, "--a-seed", "3", words=("--a-seed", "--a-prompt", "leave them out")),
    "parameters of no edit": run(*PAIR, "--edit-set", "x=1", words=("--edit-set", "--edit", "leave it out")),
    "a size to draw": run(
        "--a-prompt", "x", "--a-size", "100", "--edit", "blur", words=("100", "multiple of 64")
    ),
    # edits
    "unknown edit": run(
        "--a", "a.png", "--edit", "grayscal", words=("'grayscal'", "did you mean 'grayscale'")
    ),
    "unknown parameter": run(
        "--a", "a.png", "--edit", "outline", "--edit-set", "widht=3", words=("'widht'", "'width'")
    ),
    "parameter out of bounds": run(
        "--a", "a.png", "--edit", "outline", "--edit-set", "width=99", words=("99", "between 1 and 31")
    ),
    "parameter that is no number": run(
        "--a", "a.png", "--edit", "blur", "--edit-set", "radius=big", words=("radius=big", "name=number")
    ),
    "an edit that changes no picture": run(
        "--a-prompt", "x", "--edit", "blur", "--edit-set", "radius=0", words=("radius", "changes nothing")
    ),
    "captions that no stage reads": run(*PAIR, "--captions", ".", words=("no caption files", "--set")),
    # recipes
    "unknown recipe": Case(("run", "copier-quik", *PAIR), ("'copier-quik'", "did you mean 'copier-quick'")),
    "no recipe file": Case(("run", "none.json", *PAIR), ("none.json", "cannot be read")),
    "a file that is no recipe": Case(
        ("run", "list.json", *PAIR), ("no recipe",), lambda folder: (folder / "list.json").write_text("[1]")
    ),
    "a file that is no JSON": Case(
        ("run", "list.json", *PAIR),
        ("list.json", "not valid JSON"),
        lambda folder: (folder / "list.json").write_text("{"),
    ),
    "unknown field in a file": Case(
        ("run", "bad.json", *PAIR),
        ("'titel'", "did you mean 'title'"),
        recipe_with(lambda r: r.update(titel="x")),
    ),
    "a newer recipe": Case(
        ("run", "bad.json", *PAIR), ("version is 99", "update"), recipe_with(lambda r: r.update(version=99))
    ),
    "unknown field": run(*PAIR, "--set", "training.stepps=3", words=("'stepps'", "did you mean 'steps'")),
    "unknown stage": run(
        *PAIR, "--set", "copyer.training.steps=3", words=("'copyer'", "did you mean 'copier'")
    ),
    "a value out of bounds": run(*PAIR, "--set", "training.steps=0", words=("steps is 0", "smallest", "1")),
    "a value of another kind": run(*PAIR, "--set", "training.steps=many", words=("'many'", "whole number")),
    "a value that is not one": run(*PAIR, "--set", "training.schedule=cosin", words=("'cosin'", "'cosine'")),
    "no assignment": run(*PAIR, "--set", "steps", words=("'steps'", "path=value")),
    # checkpoints
    "no checkpoint": Case(
        ("run", "short.json", "--checkpoint", "none.safetensors", *PAIR),
        ("none.safetensors", ".safetensors file"),
    ),
    "a picture as checkpoint": Case(
        ("run", "short.json", "--checkpoint", "a.png", *PAIR), ("a.png", "not a safetensors file")
    ),
    "a pickle": Case(
        ("run", "short.json", "--checkpoint", "model.ckpt", *PAIR), ("pickle", "Checkpoint Merger"), pickled
    ),
    "a truncated checkpoint": Case(
        ("run", "short.json", "--checkpoint", "cut.safetensors", *PAIR),
        ("truncated", "again"),
        truncated_checkpoint,
    ),
    "an incomplete checkpoint": Case(
        ("run", "short.json", "--checkpoint", "part.safetensors", *PAIR),
        ("part.safetensors", "incomplete", "out.2.bias", "whole checkpoint of Stable Diffusion 1.x"),
        incomplete,
    ),
    "an inpainting checkpoint": Case(
        ("run", "short.json", "--checkpoint", "paint.safetensors", *PAIR),
        ("paint.safetensors", "9 latent channels", "not 4"),
        inpainting,
    ),
    "another safetensors file": Case(
        ("run", "short.json", "--checkpoint", "other.safetensors", *PAIR),
        ("other.safetensors", "not those of a checkpoint"),
        other_tensors,
    ),
    "a LoRA as checkpoint": Case(
        ("run", "short.json", "--checkpoint", "small.safetensors", *PAIR),
        ("is a LoRA", "give the checkpoint"),
    ),
    "an incomplete SDXL checkpoint": Case(
        ("run", "short.json", "--checkpoint", "xl.safetensors", *PAIR),
        ("xl.safetensors", "incomplete", "whole checkpoint of SDXL"),
        sdxl_checkpoint,
    ),
    # folders
    "out is a file": run(*PAIR, "--out", "taken", words=("taken", "is a file"), prepare=file_named("taken")),
    "out beneath a file": run(
        *PAIR, "--out", "taken/x", words=("taken", "is a file"), prepare=file_named("taken")
    ),
    "data is a file": run(
        *PAIR, "--data", "taken", words=("data folder", "--data"), prepare=file_named("taken")
    ),
    "somebody else's report": run(*PAIR, words=("report.json", "--out"), prepare=foreign_report),
    "a title that is no text": run(*PAIR, "--title", "caf\udce9", words=("title", "position 4")),
    "more seeds than there are": run(
        *PAIR, "--seeds", "2", "--set", "training.seed=4294967295", words=("4294967296", "largest")
    ),
    "a caption file in another encoding": run(
        *PAIR, "--set", FILES, words=("b.txt", "UTF-8"), prepare=captions("a scene", b"caf\xe9")
    ),
    "a caption that is measured with": run(
        *PAIR, "--set", FILES, words=("'one'", "measures with"), prepare=captions("one", b"a scene")
    ),
    "no caption folder": run(*PAIR, "--captions", "none", words=("none", "--captions")),
    # generate and evaluate
    "a LoRA of another family to draw with": Case(
        ("generate", "x", "--checkpoint", "base.safetensors", "--lora", "xl-lora.safetensors"),
        ("xl-lora.safetensors", "SDXL", "one family"),
        sdxl_lora,
    ),
    "a LoRA of another family to measure": Case(
        ("evaluate", "xl-lora.safetensors", "--checkpoint", "base.safetensors"),
        ("xl-lora.safetensors", "SDXL", "one family"),
        sdxl_lora,
    ),
    "a checkpoint as LoRA": Case(
        ("generate", "x", "--checkpoint", "base.safetensors", "--lora", "base.safetensors"),
        ("base.safetensors", "is no LoRA"),
    ),
    "no LoRA": Case(
        ("generate", "x", "--lora", "none.safetensors=0.5"), ("none.safetensors", "check the path")
    ),
    "a weight that is no number": Case(
        ("generate", "x", "--lora", "l.safetensors=much"), ("much", "FILE=0.8")
    ),
    "no multiple of 64 to draw": Case(("generate", "x", "--size", "130x64"), ("130", "multiple of 64")),
    "too large to draw": Case(("generate", "x", "--size", "8192"), ("8192", "at most 4096")),
    "too many to draw": Case(("generate", "x", "--count", "1000000000"), ("1000000000", "10000")),
    "seeds beyond the last": Case(
        ("generate", "x", "--seed", "4294967295", "--count", "2"), ("last seed", "4294967296")
    ),
    "a LoRA weight that would overflow": Case(
        ("generate", "x", "--lora", "small.safetensors=1e300"), ("1e+300", "between -1000 and 1000")
    ),
    "a size that is none": Case(("generate", "x", "--size", "large"), ("'large'", "768x512")),
    "guidance out of bounds": Case(
        ("generate", "x", "--guidance", "99"), ("99", "the largest allowed value is 30")
    ),
    "guidance that is no number": Case(("generate", "x", "--guidance", "nan"), ("nan", "finite")),
    "a seed that is none": Case(("generate", "x", "--seed", "-4"), ("-4", "seed")),
    "a weight out of bounds": Case(
        ("evaluate", "small.safetensors", "--weight", "99"), ("99", "largest", "10")
    ),
    "no edit of that name to measure": Case(
        ("evaluate", "small.safetensors", "--edit", "greyscale"), ("greyscale", "'grayscale'")
    ),
    # edit
    "an edit without files": Case(("edit", "grayscale"), ("NAME IN OUT", "--list")),
    "an edit with loss": Case(("edit", "blur", "a.png", "b.jpg"), ("b.jpg", ".png")),
    "an edit over a file": Case(("edit", "blur", "a.png", "b.png"), ("b.png exists", "--overwrite")),
    "an edit over its input": Case(
        ("edit", "blur", "a.png", "a.png", "--overwrite"), ("a.png", "is an input too")
    ),
    "an edit into no folder": Case(("edit", "blur", "a.png", "none/b.png"), ("none", "create it")),
    # algebra
    "no rule": Case(("resize", "small.safetensors", "-o", "x.safetensors"), ("no rule", "--sv-fro")),
    "two rules": Case(
        ("resize", "small.safetensors", "-o", "x.safetensors", "--rank", "1", "--sv-fro", "0.9"),
        ("--rank and --sv-fro", "exactly one"),
    ),
    "extraction without a rule": Case(
        ("extract", "base.safetensors", "base.safetensors", "-o", "x.safetensors"), ("no rule", "--rank")
    ),
    "extraction from equal files": Case(
        ("extract", "base.safetensors", "base.safetensors", "-o", "x.safetensors", "--rank", "1"),
        ("same weights", "nothing to extract"),
    ),
    "extraction from a LoRA": Case(
        ("extract", "small.safetensors", "base.safetensors", "-o", "x.safetensors", "--rank", "1"),
        ("small.safetensors", "is none", "lora"),
    ),
    "extraction over a file": Case(
        ("extract", "base.safetensors", "base.safetensors", "-o", "small.safetensors", "--rank", "1"),
        ("small.safetensors exists", "--overwrite"),
    ),
    "exact with a rank": Case(
        (
            "difference",
            "small.safetensors",
            "small.safetensors",
            "-o",
            "x.safetensors",
            "--exact",
            "--rank",
            "2",
        ),
        ("--exact", "leave one out"),
    ),
    "output exists": Case(
        ("combine", "small.safetensors", "-o", "base.safetensors"), ("base.safetensors exists", "--overwrite")
    ),
    "output is the input": Case(
        ("combine", "small.safetensors", "-o", "small.safetensors", "--overwrite"), ("is an input too",)
    ),
    "an output whose name is no text": Case(
        ("combine", "small.safetensors", "-o", "\udcff.safetensors"), ("output's name", "no Unicode text")
    ),
    "a weight that would overflow": Case(
        ("combine", "small.safetensors=1e300", "-o", "x.safetensors"), ("1e+300", "between -1000 and 1000")
    ),
    "a merge that would overflow": Case(
        ("merge", "base.safetensors", "small.safetensors=1e300", "-o", "x.safetensors"), ("1e+300", "1000")
    ),
    "output of another kind": Case(("combine", "small.safetensors", "-o", "x.pt"), ("x.pt", ".safetensors")),
    "output into no folder": Case(
        ("merge", "base.safetensors", "small.safetensors", "-o", "none/x.safetensors"), ("none", "create it")
    ),
    "merge of another family": Case(
        ("merge", "base.safetensors", "xl-lora.safetensors", "-o", "x.safetensors"),
        ("SDXL", "one family"),
        sdxl_lora,
    ),
    "inspect nothing": Case(("inspect", "none.safetensors"), ("none.safetensors", "check the path")),
    # the rest
    "unknown command": Case(("runn",), ("'runn'", "did you mean 'run'")),
    "unknown option": Case(("recipes", "--jsn"), ("--jsn", "--help")),
    "no threads": Case((*RUN, *PAIR, "--threads", "0"), ("'0'", "at least 1")),
    "days and all": Case(
        ("cache", "prune", "--all", "--keep-days", "3"), ("--all", "--keep-days", "one of them")
    ),
    "negative days": Case(("cache", "prune", "--keep-days", "-3"), ("-3", "0 or more")),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_is_refused_before_anything_is_written(
    case: Case, copier: Any, folder: Path, worker: Any, doubles: ModuleType
) -> None:
    case.prepare(folder)
    before = doubles.tree(folder.parent)
    done = copier(*case.arguments)
    assert done.code == 2
    assert done.out == ""
    assert [word for word in case.words if word not in done.err] == [], done.err
    assert "Traceback" not in done.err
    assert doubles.tree(folder.parent) == before
    assert worker.calls == []


@pytest.mark.parametrize("arguments", [(), ("--dry-run",), ("--json",)], ids=str)
@pytest.mark.parametrize("full", ["out", "data"])
def test_a_disk_without_room_is_refused(
    copier: Any,
    folder: Path,
    worker: Any,
    doubles: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    full: str,
    arguments: tuple[str, ...],
) -> None:
    usage = shutil.disk_usage(folder)

    def with_little(path: Path) -> Any:
        # The folders are not there yet: what counts is the disk that they would be on.
        return usage._replace(free=5 << 20) if Path(path) == folder / f"{full}-disk" else usage

    for name in ("out-disk", "data-disk"):
        (folder / name).mkdir()
    monkeypatch.setattr("copier.disk.shutil.disk_usage", with_little)
    before = doubles.tree(folder)
    places = ("--out", "out-disk/out", "--data", "data-disk/data")
    done = copier(*RUN, *PAIR, *places, *arguments)
    assert done.code == 2
    for word in (f"{full}-disk", "5 MB free", "256 MB", f"--{full}"):
        assert word in done.err
    assert doubles.tree(folder) == before
    assert worker.calls == []


def test_a_device_that_is_not_there_is_refused(
    copier: Any, folder: Path, doubles: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    before = doubles.tree(folder)
    done = copier(*RUN, *PAIR, "--device", "cuda")
    assert done.code == 2
    assert "--device cpu" in done.err
    assert doubles.tree(folder) == before


def test_the_same_run_with_good_input_is_accepted(copier: Any, worker: Any) -> None:
    """The cases above fail for their own reason, not because the run would fail anyway."""
    assert copier(*RUN, *PAIR).code == 0
    assert worker.calls


def test_a_folder_with_another_programs_sheet_takes_pictures(
    copier: Any, folder: Path, worker: Any
) -> None:
    # Only a report would replace it.
    place = folder / "mine"
    place.mkdir()
    (place / "sheet.png").write_bytes(b"theirs")
    done = copier("generate", "x", "--checkpoint", "base.safetensors", "--out", "mine")
    assert done.code == 0, done.err
    assert (place / "sheet.png").read_bytes() == b"theirs"


def test_captions_may_begin_with_a_byte_order_mark(copier: Any, folder: Path, worker: Any) -> None:
    captions("\ufeffa scene", b"another")(folder)
    done = copier(*RUN, *PAIR, "--set", FILES)
    assert done.code == 0, done.err
