"""The commands that need no worker: recipes, edit, LoRA algebra, inspect, cache, pocket; help and version."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from copier.checkpoint.reader import TensorReader
from copier.codec import builtin_recipes, recipe_from_json

ROOT = Path(__file__).parents[2]
COMMANDS = (
    *("demo", "run", "recipes", "generate", "edit", "evaluate", "caption"),
    *("difference", "combine", "resize", "merge", "extract", "inspect"),
    *("trainer install", "trainer status", "trainer remove"),
    *("cache list", "cache prune", "pocket install"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(copier: Any, command: str) -> None:
    done = copier(*command.split(), "--help")
    assert done.code == 0
    assert f"usage: copier {command}" in done.out
    assert f"examples:\n  copier {command}" in done.out
    for option in ("--json", "--data", "--device", "--threads", "--verbose"):
        assert option in done.out


def test_every_example_parses(copier: Any) -> None:
    from copier.cli.main import _Version
    from copier.cli.parser import build_parser

    parser = build_parser(_Version)
    examples = [
        line.strip()
        for command in COMMANDS
        for line in re.findall(r"^  copier (.+)$", copier(*command.split(), "--help").out, re.M)
    ]
    assert len(examples) > 20
    for example in examples:
        words = shlex.split(example)
        words = words[: words.index(">")] if ">" in words else words
        assert parser.parse_args(words).handler


@pytest.mark.parametrize("text", ["-1e-3", "-2.5E+1", "-.5e0", "-3."])
def test_negative_numbers_are_values_in_every_notation(text: str) -> None:
    from copier.cli.main import _Version
    from copier.cli.parser import build_parser

    arguments = build_parser(_Version).parse_args(["evaluate", "l.safetensors", "--weight", text])
    assert arguments.weight == [float(text)]


def test_a_file_may_have_an_equals_sign_in_its_name(folder: Path) -> None:
    from copier.cli.parser import weighted_file

    path = folder / "a=0.5"
    path.touch()
    assert weighted_file(str(path)) == (path, 1.0)
    assert weighted_file(f"{path}=2") == (path, 2.0)


def test_the_help_lists_every_command_and_the_exit_codes(copier: Any) -> None:
    out = copier("--help").out
    for command in {command.split()[0] for command in COMMANDS}:
        assert re.search(rf"^ +{command} ", out, re.M)
    for word in ("0 done", "1 failed", "2 bad input", "130 stopped"):
        assert word in out


def test_version_is_that_of_the_project(copier: Any) -> None:
    done = copier("--version")
    stated = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert stated
    assert done.code == 0
    assert done.out == f"copier {stated[1]}\n"


def test_recipes_lists_all_and_shows_every_number_of_one(copier: Any) -> None:
    listed = copier("recipes")
    assert listed.code == 0
    for name in builtin_recipes():
        assert name in listed.out
    assert [one["name"] for one in copier("recipes", "--json").json["recipes"]] == list(builtin_recipes())
    shown = copier("recipes", "copier-quick")
    assert re.search(r"copier\.training\.learning_rate +0\.001 +Learning rate", shown.out)
    assert re.search(r"gate\.median_limit +0\.2 ", shown.out)


def test_a_recipe_as_json_reads_back_as_itself(copier: Any) -> None:
    data = copier("recipes", "copier-thorough", "--json").json
    assert recipe_from_json(data) == builtin_recipes()["copier-thorough"]


def test_edit_writes_the_edited_picture(copier: Any, folder: Path) -> None:
    done = copier("edit", "grayscale", "a.png", "gray.png", "--set", "strength=1", "--json")
    assert done.code == 0
    assert done.json["parameters"] == {"strength": 1.0}
    pixels = np.asarray(Image.open(folder / "gray.png")).astype(int)
    assert (pixels.max(axis=-1) - pixels.min(axis=-1)).max() == 0
    before = np.asarray(Image.open(folder / "a.png")).astype(int)
    assert (before.max(axis=-1) - before.min(axis=-1)).max() > 50
    assert not list(folder.glob(".*"))


def test_edit_list_names_every_edit_with_bounds(copier: Any) -> None:
    names = [one["name"] for one in copier("edit", "--list", "--json").json["edits"]]
    text = copier("edit", "--list").out
    assert len(names) >= 10
    assert all(name in text for name in names)
    assert "width 3 (1 to 31)" in text


def factors(path: Path) -> dict[str, Any]:
    with TensorReader(path) as reader:
        return {key: reader.tensor(key).double() for key in reader.header.tensors}


def dense(path: Path, module: str) -> Any:
    tensors = factors(path)
    up, down = tensors[f"{module}.lora_up.weight"], tensors[f"{module}.lora_down.weight"]
    return float(tensors[f"{module}.alpha"]) / up.shape[1] * (up.flatten(1) @ down.flatten(1))


def test_difference_of_combined_loras_gives_the_other_one_back(
    copier: Any, folder: Path, doubles: ModuleType
) -> None:
    doubles.write_small_lora(folder / "other.safetensors", rank=3, seed=9)
    module = doubles.BLOCK + "transformer_blocks_0_attn2_to_q"
    sum_ = copier(
        "combine",
        "small.safetensors=0.5",
        "other.safetensors=-2",
        "-o",
        "sum.safetensors",
        "--exact",
        "--dtype",
        "fp32",
        "--json",
    )
    assert sum_.code == 0
    assert sum_.json["ranks"]["linear"] == {"min": 5, "max": 5}
    back = copier(
        "difference",
        "sum.safetensors",
        "other.safetensors",
        "-o",
        "back.safetensors",
        "--ratios",
        "2",
        "4",
        "--rank",
        "2",
        "--dtype",
        "fp32",
    )
    assert back.code == 0
    assert "ranks" in back.out
    expected = dense(folder / "small.safetensors", module)
    assert float((dense(folder / "back.safetensors", module) - expected).norm() / expected.norm()) < 1e-5
    assert float(expected.norm()) > 0.1


def test_resize_and_merge_write_what_they_say(copier: Any, folder: Path) -> None:
    small = copier("resize", "small.safetensors", "-o", "r.safetensors", "--rank", "1", "--json")
    assert small.json["ranks"]["linear"] == {"min": 1, "max": 1}
    assert small.err.startswith("resize") and "done in" in small.err
    assert small.json["residual"] > 0.01
    merged = copier("merge", "base.safetensors", "small.safetensors=0", "-o", "m.safetensors", "--json")
    assert merged.code == 0
    with TensorReader(folder / "base.safetensors") as one, TensorReader(folder / "m.safetensors") as two:
        assert all(one.tensor(key).equal(two.tensor(key)) for key in one.header.tensors)
    assert copier("merge", "base.safetensors", "small.safetensors", "-o", "m.safetensors").code == 2
    over = copier("merge", "base.safetensors", "small.safetensors", "-o", "m.safetensors", "--overwrite")
    assert over.code == 0
    assert "changed  2 tensors" in over.out


def test_extract_gives_a_merged_lora_back_and_names_what_is_not_in_it(
    copier: Any, folder: Path, doubles: ModuleType
) -> None:
    norms = [f"model.diffusion_model.middle_block.1.transformer_blocks.0.norm{n}.bias" for n in (1, 2, 3)]
    with TensorReader(folder / "base.safetensors") as reader:
        more = {key: reader.tensor(key) + 1 for key in norms}
        kept = {key: reader.tensor(key) for key in reader.header.tensors}
    doubles.write_checkpoint(folder / "other.safetensors", **{**kept, **more})
    merge = ("merge", "other.safetensors", "small.safetensors", "-o", "tuned.safetensors")
    assert copier(*merge).code == 0
    files = ("extract", "tuned.safetensors", "base.safetensors")
    options = ("--rank", "2", "--dtype", "fp32", "--threads", "1")
    done = copier(*files, "-o", "one.safetensors", *options, "--json")
    assert done.code == 0, done.err
    assert done.json["changed"] == 2
    assert done.json["unchanged"] == 262
    assert 1.0 <= done.json["bound"] <= 1.01
    assert [one["key"] for one in done.json["left_out"]] == norms
    assert "3 tensors changed, but no LoRA can carry it" in done.err
    assert norms[0] in done.err
    for module in {key.partition(".")[0] for key in factors(folder / "small.safetensors")}:
        expected = dense(folder / "small.safetensors", module)
        assert float((dense(folder / "one.safetensors", module) - expected).norm() / expected.norm()) < 1e-5
    told = copier(*files, "-o", "two.safetensors", "--sv-fro", "0.5", "--max-rank", "1")
    assert told.code == 0
    assert "ranks" in told.out
    assert "certified    at most 1.0000 x the smallest possible error" in told.out


def test_inspect_tells_what_a_file_is_and_the_recipe_that_it_carries(
    copier: Any, folder: Path, doubles: ModuleType
) -> None:
    checkpoint = copier("inspect", "base.safetensors")
    assert "sd1 checkpoint ldm" in checkpoint.out
    text = (folder / "short.json").read_text(encoding="utf-8")
    doubles.write_small_lora(folder / "with.safetensors", **{"copier.recipe": text})
    found = copier("inspect", "with.safetensors", "--json").json
    assert found["recipe"]["name"] == "short"
    assert found["ranks"]["linear"] == {"2": 2}
    assert found["sha256"] == hashlib.sha256((folder / "with.safetensors").read_bytes()).hexdigest()
    doubles.write_small_lora(folder / "broken.safetensors", **{"copier.recipe": "{"})
    broken = copier("inspect", "broken.safetensors", "--json")
    assert broken.code == 0
    assert broken.json["recipe"] is None
    assert "not valid JSON" in broken.err


def store_stage(folder: Path, key: str, *, days: float) -> None:
    from copier.pipeline.store import StageStore

    store = StageStore(folder / "data" / "stages")
    place = store.begin(key)
    (place / "file").write_bytes(bytes(1000))
    store.commit(place, key=key, kind="draw", name="x", ingredients={}, outcome={}, seconds=1.5)
    record = folder / "data" / "stages" / key / "record.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps({**content, "created": time.time() - days * 86_400}), encoding="utf-8")


def test_cache_lists_and_prunes_by_age(copier: Any, folder: Path) -> None:
    assert copier("cache", "list").out.startswith("0 stages")
    store_stage(folder, "a" * 64, days=40)
    store_stage(folder, "b" * 64, days=3)
    store_stage(folder, "c" * 64, days=0)
    listed = copier("cache", "list", "--json").json
    assert [one["key"][0] for one in listed["stages"]] == ["c", "b", "a"]
    assert listed["bytes"] > 3000
    assert "40 days" in copier("cache", "list").out
    assert [one["key"][0] for one in copier("cache", "prune", "--json").json["stages"]] == ["a"]
    assert copier("cache", "prune", "--keep-days", "1").out.startswith("deleted 1 stages")
    assert [path.name[0] for path in (folder / "data" / "stages").iterdir()] == ["c"]
    assert copier("cache", "prune", "--all").code == 0
    assert list((folder / "data" / "stages").iterdir()) == []


def test_pocket_install_hands_the_folder_to_the_installer(copier: Any) -> None:
    done = copier("pocket", "install", "webui", "--json")
    assert done.code == 0
    assert done.json == {"files": ["webui/installed"]}
    assert "set width and height to 128" in copier("pocket", "install", "webui").out


def test_as_a_process_bad_input_ends_with_2_and_leaves_nothing(folder: Path, doubles: ModuleType) -> None:
    """The same through ``python -m copier``, with the real embedded parts."""
    before = doubles.tree(folder)
    arguments = [
        "run",
        "copier-quick-pocket",
        "--checkpoint",
        "base.safetensors",
        "--a",
        "a.png",
        "--b",
        "no.png",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "copier", "--data", "data", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "copier: there is no file no.png: check the path\n"
    assert doubles.tree(folder) == before
