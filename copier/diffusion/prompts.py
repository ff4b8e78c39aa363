"""Prompts to what the U-Net's cross attention reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from copier.diffusion.load import DiffusionModel
from copier.diffusion.tokenizer import POSITIONS

PROMPTS_PER_BATCH = 16


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
    """Token ids (n, 77), int64; what exceeds 75 tokens is cut off."""
    encoded = tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=POSITIONS,
        return_tensors="pt",
    )
    return torch.as_tensor(encoded.input_ids)


def encode_tokens(text_encoder: Any, tokens: torch.Tensor, *, clip_skip: int = 1) -> torch.Tensor:
    """Hidden states (n, 77, width) after ``clip_skip`` - 1 layers fewer, then the final norm.

    ``clip_skip`` counts as hosts and sd-scripts do: 1 uses all layers. Differentiable.
    """
    if clip_skip == 1:
        hidden: torch.Tensor = text_encoder(tokens).last_hidden_state
        return hidden
    states = text_encoder(tokens, output_hidden_states=True).hidden_states
    if not 1 <= clip_skip < len(states):
        raise ValueError(f"clip_skip is {clip_skip}: it must be 1 to {len(states) - 1}")
    normed: torch.Tensor = text_encoder.text_model.final_layer_norm(states[-clip_skip])
    return normed


@torch.no_grad()
def encode_prompts(
    model: DiffusionModel, prompts: Sequence[str], *, clip_skip: int = 1
) -> torch.Tensor:
    """The text encoder's output for each prompt, (n, 77, width), on the model's device.

    Equal prompts are encoded once.
    """
    distinct = list(dict.fromkeys(prompts))
    parts = [
        encode_tokens(
            model.text_encoder,
            tokenize(model.tokenizer, distinct[first : first + PROMPTS_PER_BATCH]).to(model.device),
            clip_skip=clip_skip,
        )
        for first in range(0, len(distinct), PROMPTS_PER_BATCH)
    ]
    places = {prompt: place for place, prompt in enumerate(distinct)}
    order = torch.tensor([places[prompt] for prompt in prompts], device=model.device)
    return torch.cat(parts)[order]
