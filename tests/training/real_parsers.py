"""The parsers of a checkout of sd-scripts, in a process of their own (test_real_sd_scripts.py starts it).

Reads ``[{"script": ..., "argv": [...], "dataset": {...}}, ...]`` from standard input and prints the options
of each script, and for each case what its parser and its reader of datasets made of it. Packages that are
only imported on the way, and are not here, are stood in for by empty ones in a temporary folder. Without
``voluptuous``, which checks datasets, there is no answer about them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import os
import sys
import tempfile
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any

UNUSED = ("cv2", "einops", "imagesize", "toml", "torchvision", "voluptuous")
"""What sd-scripts imports while it makes its parsers, without calling it."""
EMPTY = '''
class Anything:
    def __init__(self, *args, **kwargs): pass
    def __call__(self, *args, **kwargs): return self
    def __getattr__(self, name): return Anything()

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything()
'''
SCRIPTS = ("train_network", "sdxl_train_network")


def stand_in(folder: Path) -> list[str]:
    """Put an empty package first on the path for each one that is missing; their names."""
    missing = [name for name in UNUSED if importlib.util.find_spec(name) is None]
    for name in missing:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(EMPTY)
        if name == "torchvision":
            (folder / name / "transforms.py").write_text(EMPTY)
    sys.path.insert(0, str(folder))
    return missing


def blueprint(arguments: Any, dataset: Any) -> Any:
    """What sd-scripts would make datasets from."""
    config = importlib.import_module("library.config_util")
    importlib.import_module("library.train_util").prepare_dataset_args(arguments, True)
    sanitizer = config.ConfigSanitizer(True, True, arguments.masked_loss, True)
    made = config.BlueprintGenerator(sanitizer).generate(dataset, arguments)
    return [
        {**asdict(one.params), "subsets": [asdict(subset.params) for subset in one.subsets]}
        for one in made.dataset_group.datasets
    ]


def answer(parsers: dict[str, ArgumentParser], case: Any, *, datasets: bool) -> Any:
    """The values that the script would get, or the parser's complaint."""
    script = Path(case["script"]).stem
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            arguments = parsers[script].parse_args(case["argv"])
    except SystemExit:
        return {"error": complaint.getvalue()}
    values = dict(vars(arguments))
    return {"values": values, "datasets": blueprint(arguments, case["dataset"]) if datasets else None}


def main() -> None:
    cases, out = json.load(sys.stdin), sys.stdout
    sys.stdout = sys.stderr  # sd-scripts logs while it is imported
    with tempfile.TemporaryDirectory() as folder:
        missing = stand_in(Path(folder))
        sys.path.insert(0, os.environ["SD_SCRIPTS"])
        parsers = {name: importlib.import_module(name).setup_parser() for name in SCRIPTS}
        answers = [answer(parsers, case, datasets="voluptuous" not in missing) for case in cases]
    known = {name: importlib.import_module(f"library.strategy_{name}") for name in ("sd", "sdxl")}
    tokenizers = {
        "sd1": [known["sd"].TOKENIZER_ID],
        "sd2": [known["sd"].V2_STABLE_DIFFUSION_ID],
        "sdxl": [known["sdxl"].TOKENIZER1_PATH, known["sdxl"].TOKENIZER2_PATH],
    }
    options = {f"{name}.py": sorted(parser._option_string_actions) for name, parser in parsers.items()}
    json.dump({"options": options, "answers": answers, "tokenizers": tokenizers}, out, default=str)


if __name__ == "__main__":
    main()
