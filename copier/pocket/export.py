"""Write the trained pocket checkpoint: ``python -m copier.pocket.export --work DIR --out FILE``.

One fp16 file in SD 1.5's LDM layout with exactly SD 1.5's keys; the averaged weights of the U-Net and
the text encoder, the autoencoder with the tuned decoder where there is one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from copier.checkpoint.names import (
    ldm_from_diffusers_unet,
    ldm_from_diffusers_vae,
    ldm_from_transformers_text,
    sd1_buffers,
    squeezed_in_diffusers,
)
from copier.checkpoint.writer import write_tensors
from copier.pocket.architecture import TEXT_WIDTH, VOCABULARY
from copier.pocket.checkpoint import TITLE
from copier.pocket.loop import check_origin, origin_of
from copier.pocket.train_unet import scene_tokens

METADATA = {
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
    "modelspec.title": TITLE,
    "modelspec.description": "Stable Diffusion 1.x in small, for demos and tests: draws one shape on "
    "a plain background.",
    "modelspec.license": "MIT",
    "modelspec.prediction_type": "epsilon",
    "modelspec.resolution": "128x128",
}

EMBEDDING = "text_model.embeddings.token_embedding.weight"
UNTRAINED_ROWS_STD = 0.02


def ldm_tensors(work: Path) -> dict[str, torch.Tensor]:
    """The tensors of the checkpoint by LDM key, fp16, from the states of the training stages."""
    unet = _load(work, "settle.pt", made_from=("latents.pt", "text.pt", "unet.pt"))
    if (work / "decoder.pt").exists():
        autoencoder = _load(work, "decoder.pt", made_from=("latents.pt",))["model"]
    else:
        autoencoder = _load(work, "latents.pt")["autoencoder"]
    average = unet["model"]["average"]
    tensors = {}
    for key, value in autoencoder.items():
        name = ldm_from_diffusers_vae(key)
        tensors[name] = value[:, :, None, None] if squeezed_in_diffusers(name) else value
    for key, value in average.items():
        part, _, inner = key.partition(".")
        if part == "unet":
            tensors[ldm_from_diffusers_unet(inner)] = value
        elif inner == EMBEDDING:
            tensors[ldm_from_transformers_text(inner)] = full_embedding(value)
        elif not inner.endswith("position_ids"):
            tensors[ldm_from_transformers_text(inner)] = value
    halved = {key: value.half().contiguous() for key, value in tensors.items()}
    for key in sd1_buffers():
        halved[key] = torch.arange(77).view(1, 77)
    return halved


def full_embedding(rows: torch.Tensor) -> torch.Tensor:
    """The whole vocabulary's table (49408, width): trained rows for the scene words, noise elsewhere."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(VOCABULARY, TEXT_WIDTH, generator=generator) * UNTRAINED_ROWS_STD
    table[torch.tensor(scene_tokens())] = rows
    return table


def _load(work: Path, name: str, *, made_from: Sequence[str] = ()) -> Mapping[str, Any]:
    """A stage's state; ValueError where it was not made from the files of ``made_from`` as they are now."""
    state: Mapping[str, Any] = torch.load(work / name, map_location="cpu", weights_only=True)
    if made_from:
        check_origin(work / name, state, origin_of(work, state["origin"]["seed"], made_from))
    return state


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the training's states")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(arguments.out, ldm_tensors(arguments.work), METADATA, overwrite=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
