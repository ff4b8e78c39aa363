"""Run as a script by the Python that will train, with an overlay: does it work there?

Reads one JSON object from standard input (``overlay_check`` says what is in it) and answers with one on the
last line of standard output. Whatever fails is part of the answer.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

TOKENIZERS = {
    "openai_clip-vit-large-patch14": "<|endoftext|>",
    "stabilityai_stable-diffusion-2": "!",
    "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k": "!",
}
"""Folders that sd-scripts looks for in ``--tokenizer_cache_dir``, and what pads in them: SD 2.x and SDXL's
second text encoder were trained with open_clip, which pads with token 0."""
_TEXT, _TOKENS = "a cat", [49406, 320, 2368, 49407]


def looked_at(job: dict[str, Any]) -> dict[str, Any]:
    """The answer: versions, whether torchvision works, and what failed, by module, with the reason."""
    own = Path(__file__).resolve().parent
    others = [folder for folder in sys.path if Path(folder or ".").resolve() != own]
    sys.path[:] = [job["packages"], *job.get("behind", ()), job["project"], *others]
    failed: dict[str, str] = {}
    stand_in = False
    if job["for_training"]:
        failed |= tried("torch")
        stand_in = bool(tried("torchvision.transforms"))
        if stand_in:
            # A torchvision that was built for another torch fails half-way.
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            sys.path.insert(0, job["stand_in"])
            failed |= tried("torchvision.transforms")
    for name in job["modules"]:
        failed |= tried(name, inside=job["packages"])
    unusable: dict[str, str] = {}
    for name in job["optional"]:
        unusable |= tried(name, inside=job["packages"]) or (eight_bit() if name == "bitsandbytes" else {})
    if job["for_training"] and not failed:
        failed |= tokenizers_written(Path(job["tokenizers"]))
    return {"stand_in": stand_in, "failed": failed, "unusable": unusable}


def tried(name: str, *, inside: str = "") -> dict[str, str]:
    """Import the module; its name and what was wrong, or nothing. ``inside``: where it must come from."""
    try:
        module = importlib.import_module(name)
    except Exception as error:
        return {name: reason(error)}
    found = Path(getattr(module, "__file__", None) or "").resolve()
    if inside and Path(inside).resolve() not in found.parents:
        return {name: f"found in {found.parent} instead"}
    return {}


def eight_bit() -> dict[str, str]:
    """One step of the 8-bit optimiser: bitsandbytes can be imported without its CUDA library too."""
    try:
        import bitsandbytes
        import torch

        # Smaller parameters than this keep their state in 32 bits.
        parameter = torch.nn.Parameter(torch.zeros(8192, device="cuda"))
        parameter.grad = torch.ones_like(parameter)
        bitsandbytes.optim.AdamW8bit([parameter], lr=1.0).step()
        torch.cuda.synchronize()
        if not bool(parameter.abs().min() > 0):
            return {"bitsandbytes": "a step of its 8-bit AdamW changed nothing"}
    except Exception as error:
        return {"bitsandbytes": reason(error)}
    return {}


def tokenizers_written(folder: Path) -> dict[str, str]:
    """Write CLIP's tokenizers where they are not there yet, and try them."""
    try:
        from transformers import CLIPTokenizer

        from copier.diffusion.tokenizer import write_tokenizer

        for name, padding in TOKENIZERS.items():
            tokenizer = CLIPTokenizer.from_pretrained(str(write_tokenizer(folder / name, padding=padding)))
            if tokenizer(_TEXT).input_ids != _TOKENS:
                return {name: f"{_TEXT!r} became {tokenizer(_TEXT).input_ids} instead of {_TOKENS}"}
    except Exception as error:
        return {"the tokenizers": reason(error)}
    return {}


def reason(error: Exception) -> str:
    """What an exception says, in its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


if __name__ == "__main__":
    answer = looked_at(json.loads(sys.stdin.readline()))
    # On a line of its own: what was imported may have printed something.
    sys.stdout.write(f"\n{json.dumps(answer)}\n")
