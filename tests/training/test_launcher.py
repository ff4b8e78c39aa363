"""The launcher beside plain Python, with a toy folder of scripts that has what matters of sd-scripts."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from copier.training import launcher

LAUNCHER = Path(launcher.__file__)
SD_SCRIPTS = Path(
    os.environ.get("COPIER_SD_SCRIPTS_DIR", Path(__file__).parents[2] / "vendor" / "sd-scripts")
)

SCRIPT = """
import argparse, json, sys
import library, networks.lora as lora, wrapped
def setup_parser():
    print("a word on standard output")
    parser = argparse.ArgumentParser()
    parser.add_argument("--network_dim", type=int)
    parser.add_argument("--masked_loss", action="store_true")
    return parser
if __name__ == "__main__":
    first, second = lora.Network(True).targets, lora.Network(False).targets
    print(json.dumps({"argv": sys.argv, "path": sys.path, "main": __name__, "file": __file__,
        "library": library.WHO, "wrapped": wrapped.WHO, "first": first, "second": second,
        "class": lora.Network.UNET_TARGET_REPLACE_MODULE, "seed": lora.drawn()}))
"""

NETWORK = """
import random
random.seed(7)
class Network:
    UNET_TARGET_REPLACE_MODULE = ["Transformer"]
    UNET_TARGET_REPLACE_MODULE_CONV2D_3X3 = ["Resnet", "Downsample"]
    def __init__(self, conv):
        targets = Network.UNET_TARGET_REPLACE_MODULE
        if conv:
            targets += Network.UNET_TARGET_REPLACE_MODULE_CONV2D_3X3
        self.targets = targets
def drawn():
    return random.random()
"""


def written(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "sd scripts ä"
    return written(folder, toy=SCRIPT, networks__lora=NETWORK, library="WHO='sd-scripts'", wrapped="WHO='sd'")


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    return written(tmp_path / "overlay 雪", library="WHO = 'overlay'", wrapped="WHO = 'overlay'")


def launch(*arguments: object, script_arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(LAUNCHER), *map(str, arguments), "--", *script_arguments]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": ""}
    return subprocess.run(command, capture_output=True, timeout=60, env=environment)


def answer(*arguments: object, script_arguments: tuple[str, ...] = ()) -> dict[str, Any]:
    done = launch(*arguments, script_arguments=script_arguments)
    assert done.returncode == 0, done.stderr.decode()
    told: dict[str, Any] = json.loads(done.stdout.decode("utf-8"))
    return told


def test_the_overlay_comes_first_and_the_scripts_folder_second(scripts: Path, overlay: Path) -> None:
    told = answer("--overlay", overlay, "--sd-scripts", scripts, "--script", "toy.py")
    assert told["path"][:2] == [str(overlay), str(scripts)]
    assert told["library"] == "overlay"
    assert str(LAUNCHER.parent) not in told["path"]


def test_a_second_overlay_comes_behind_the_first(scripts: Path, overlay: Path, tmp_path: Path) -> None:
    more = written(tmp_path / "more", library="WHO = 'more'", wrapped="WHO = 'more'")
    told = answer("--overlay", overlay, "--overlay", more, "--sd-scripts", scripts, "--script", "toy.py")
    assert told["path"][:3] == [str(overlay), str(more), str(scripts)]


def test_a_stand_in_comes_before_both(scripts: Path, overlay: Path, tmp_path: Path) -> None:
    stand_in = written(tmp_path / "stand-in", wrapped="WHO = 'stand-in'")
    told = answer(
        *("--overlay", overlay, "--sd-scripts", scripts, "--stand-in", stand_in), "--script", "toy.py"
    )
    assert (told["library"], told["wrapped"]) == ("overlay", "stand-in")


def test_the_script_is_main_and_gets_its_arguments_as_they_are(scripts: Path) -> None:
    given = ("--prompt", "naïve 雪", "--", "--script", "x")
    told = answer("--sd-scripts", scripts, "--script", "toy.py", script_arguments=given)
    assert told["main"] == "__main__"
    assert told["argv"] == [str(scripts / "toy.py"), *given]
    assert told["file"] == str(scripts / "toy.py")


def test_what_one_network_adds_to_its_class_is_not_in_the_next_one(scripts: Path) -> None:
    """Plain Python shows the bug, so the toy is the thing that has to be mended."""
    plain = subprocess.run([sys.executable, "toy.py"], cwd=scripts, capture_output=True, check=True)
    assert json.loads(plain.stdout)["second"] == ["Transformer", "Resnet", "Downsample"]
    told = answer("--sd-scripts", scripts, "--script", "toy.py")
    assert told["first"] == ["Transformer", "Resnet", "Downsample"]
    assert told["second"] == told["class"] == ["Transformer"]


def test_the_random_stream_is_that_of_plain_python(scripts: Path) -> None:
    plain = subprocess.run([sys.executable, "toy.py"], cwd=scripts, capture_output=True, check=True)
    told = answer("--sd-scripts", scripts, "--script", "toy.py")
    assert told["seed"] == json.loads(plain.stdout)["seed"]


@pytest.mark.parametrize(
    ("code", "ends"), [("raise SystemExit(7)", 7), ("1 / 0", 1), ("pass", 0), ("import os; os._exit(3)", 3)]
)
def test_it_ends_as_the_script_ends(code: str, ends: int, tmp_path: Path) -> None:
    done = launch("--sd-scripts", written(tmp_path, ends=code), "--script", "ends.py")
    assert done.returncode == ends
    assert (b"ZeroDivisionError" in done.stderr) == ("1 / 0" in code)


def test_output_is_utf8_whatever_the_system_says(tmp_path: Path) -> None:
    code = "import sys; print('学習開始 ä'); print('é', file=sys.stderr); print('\\udc80')"
    done = launch("--sd-scripts", written(tmp_path, speaks=code), "--script", "speaks.py")
    assert done.stdout.decode("utf-8").splitlines() == ["学習開始 ä", "\\udc80"]
    assert done.stderr.decode("utf-8").strip() == "é"


def test_a_line_comes_out_at_once_although_nobody_flushes(tmp_path: Path) -> None:
    folder = written(tmp_path, slow="import time\nprint('now')\ntime.sleep(60)")
    command = [sys.executable, str(LAUNCHER), "--sd-scripts", str(folder), "--script", "slow.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            started = time.monotonic()
            assert child.stdout.readline().strip() == b"now"
            assert time.monotonic() - started < 30
        finally:
            child.kill()


def test_options_are_those_of_the_scripts_own_parser_and_nothing_runs(scripts: Path) -> None:
    done = launch("--sd-scripts", scripts, "--script", "toy.py", "--list-options")
    assert json.loads(done.stdout) == ["--help", "--masked_loss", "--network_dim", "-h"]


def test_initialisation_is_skipped_in_the_loader_and_nowhere_else(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    loader = (
        "import torch\n"
        "def load_models_from_stable_diffusion_checkpoint(v2, path):\n"
        "    import transformers.modeling_utils\n"
        "    before = torch.get_rng_state()\n"
        "    torch.nn.Linear(64, 64), torch.nn.Embedding(9, 9), torch.nn.Conv2d(3, 3, 3)\n"
        "    return v2, path, bool(torch.equal(before, torch.get_rng_state()))\n"
    )
    script = (
        "import torch\nfrom library import model_util\n"
        "told = model_util.load_models_from_stable_diffusion_checkpoint(True, path='p')\n"
        "before = torch.get_rng_state()\n"
        "torch.nn.Linear(8, 8)\n"
        "print(*told, torch.equal(before, torch.get_rng_state()))\n"
    )
    folder = written(tmp_path, library____init__="", library__model_util=loader, go=script)
    plain = launch("--sd-scripts", folder, "--script", "go.py")
    assert plain.stdout.split() == [b"True", b"p", b"False", b"False"]
    skipped = launch("--sd-scripts", folder, "--script", "go.py", "--skip-init")
    assert skipped.stdout.split() == [b"True", b"p", b"True", b"False"]


ACCELERATE = """
compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
mixed_precision: 'no'
num_machines: 1
num_processes: 1
use_cpu: true
"""


def test_accelerate_starts_the_launcher_again_with_everything(
    scripts: Path, overlay: Path, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    config = tmp_path / "my config.yaml"
    config.write_text(ACCELERATE, encoding="utf-8")
    given = ("--network_dim", "4", "--", "naïve 雪")
    more = written(tmp_path / "more")
    overlays = ("--overlay", overlay, "--overlay", more)
    told = answer(
        *(*overlays, "--sd-scripts", scripts, "--script", "toy.py", "--accelerate", config),
        script_arguments=given,
    )
    assert told["argv"] == [str(scripts / "toy.py"), *given]
    assert told["path"][:3] == [str(overlay), str(more), str(scripts)]
    assert told["second"] == ["Transformer"]


def test_it_needs_nothing_but_the_standard_library() -> None:
    code = f"import sys, runpy\nruntime = runpy.run_path({str(LAUNCHER)!r})\nprint('copier' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"


@pytest.mark.sd_scripts
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("diffusers", "einops", "cv2")),
    reason="needs the packages of sd-scripts",
)
def test_sd_scripts_own_network_does_not_grow(tmp_path: Path) -> None:
    code = (
        "import networks.lora as lora\nkind = lora.LoRANetwork\n"
        "t = kind.UNET_TARGET_REPLACE_MODULE\nt += kind.UNET_TARGET_REPLACE_MODULE_CONV2D_3X3\n"
        "print('COUNTS', len(t), len(kind.UNET_TARGET_REPLACE_MODULE))\n"
    )
    probe = written(tmp_path, probe=code) / "probe.py"
    done = launch("--sd-scripts", SD_SCRIPTS, "--script", probe)
    assert b"COUNTS 4 1" in done.stdout, done.stderr.decode()


@pytest.mark.sd_scripts
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("diffusers", "einops", "cv2")),
    reason="needs the packages of sd-scripts",
)
@pytest.mark.parametrize("script", ["train_network.py", "sdxl_train_network.py"])
def test_sd_scripts_own_options_are_listed(script: str) -> None:
    done = launch("--sd-scripts", SD_SCRIPTS, "--script", script, "--list-options")
    assert {"--network_dim", "--base_weights", "--dataset_config"} <= set(json.loads(done.stdout))
