"""The script in docs/api.md does what it says: from a picture to a LoRA, trained for real."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from copier.api import Guard
from copier.checkpoint.header import read_header
from copier.codec import RECIPE_KEY, builtin_recipes, recipe_to_json
from copier.pocket.checkpoint import checkpoint_path
from tests.api.conftest import Client, Served

ROOT = Path(__file__).resolve().parents[2]
RECIPE, TOOK = "copier-quick-pocket", 2


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A server that works its queue, with a recipe of so few steps that it ends in moments."""
    (tmp_path / "data" / "presets").mkdir(parents=True)
    recipe = recipe_to_json(builtin_recipes()[RECIPE])
    (stage,) = (stage for stage in recipe["stages"] if stage["name"] == recipe["result"])
    stage["training"] |= {"steps": TOOK, "batch_size": 1, "rank": 2, "alpha": 2.0, "warmup_steps": 0}
    recipe["stages"] = [{**stage, "base": []}]
    short = {**recipe, "name": "short", "title": "Short"}
    (tmp_path / "data" / "presets" / "short.json").write_text(json.dumps(short))
    with contextlib.ExitStack() as stack:
        client = Served(tmp_path, stack, str(checkpoint_path()))(Guard((("me", "secret"),)))
        client.services.jobs.start()
        yield client


def run(client: Client, folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the script in ``folder``, with the test's address and recipe, and some of its texts changed."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    script = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert script is not None
    source = script[1]
    for old, new in {"7861": str(client.port), RECIPE: "short", "sleep(1)": "sleep(0.1)", **changes}.items():
        assert old in source
        source = source.replace(old, new)
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(source)
    command = [sys.executable, "-I", "script.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_the_script_of_the_docs_goes_from_a_picture_to_a_lora(
    client: Client, tmp_path: Path, doubles: Any
) -> None:
    work = tmp_path / "elsewhere"
    work.mkdir()
    doubles.write_picture(work / "star.png", 150, 140, seed=4)
    for change, status in (
        ({"me:secret": "me:secre"}, 401),
        ({'"paths": [picture]': '"paths": ["/none.png"]'}, 422),
        ({'"paths": [picture]': '"paths": "star.png"'}, 422),
        ({"grayscale": "gray"}, 422),
        ({'"/jobs", {': '"/job", {'}, 404),
    ):
        refused = run(client, work, **change)
        assert refused.returncode == 1 and f"HTTP Error {status}" in refused.stderr, refused.stderr
    assert client.services.jobs.jobs() == ()

    done = run(client, work)
    assert done.returncode == 0, done.stderr
    lora = client.services.settings.loras / "grey-star.safetensors"
    assert done.stdout == f"{lora}: use it as <lora:grey-star:1>\n"
    recipe = json.loads(read_header(lora).metadata[RECIPE_KEY])
    assert recipe["name"] == "short"
    (job,) = client.services.jobs.jobs()
    steps = [stage.step for stage in client.services.jobs.view(job.id).stages if stage.steps]
    assert steps == [TOOK]
    assert lora.with_suffix(".png").is_file()
