"""Prompts to what the U-Net reads: the context of its cross attention and, of SDXL, a pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from copier.checkpoint.shapes import VOCABULARY
from copier.checkpoint.structure import TextStructure, check_clip_skip
from copier.diffusion.model import DiffusionModel
from copier.diffusion.tokenizer import POSITIONS

PROMPTS_PER_BATCH = 16
_END_MARK = VOCABULARY - 1
_OPEN_CLIP_PADDING = 0


@dataclass(frozen=True)
class Conditions:
    """What the U-Net reads of n prompts.

    ``context`` (n, 77, width); ``pooled`` (n, width) where the family's U-Net reads it, else None.
    """

    context: torch.Tensor
    pooled: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.context)

    def rows(self, rows: slice | torch.Tensor | list[int]) -> Conditions:
        """Those of some of the prompts."""
        return Conditions(self.context[rows], None if self.pooled is None else self.pooled[rows])

    def repeated(self, count: int) -> Conditions:
        """A single prompt's, ``count`` times; shares its memory."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return Conditions(self.context.expand(count, -1, -1), pooled)

    def nothing(self) -> Conditions:
        """Zeros in their place."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return Conditions(torch.zeros_like(self.context), pooled)

    def added(self, width: int, height: int) -> dict[str, torch.Tensor] | None:
        """diffusers' ``added_cond_kwargs`` for pictures of that size, drawn whole and neither scaled nor
        cropped before (Podell et al. 2023, section 2.2); None where nothing is pooled."""
        if self.pooled is None:
            return None
        size = (float(height), float(width))
        ids = torch.tensor([*size, 0.0, 0.0, *size], device=self.pooled.device)
        return {"text_embeds": self.pooled, "time_ids": ids.expand(len(self), -1)}


def joined(parts: Sequence[Conditions]) -> Conditions:
    """Those of all prompts, one after the other."""
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Conditions(torch.cat([part.context for part in parts]), torch.cat(pooled) if pooled else None)


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
    """Token ids (n, 77), int64, filled up with the end mark; what exceeds 75 tokens is cut off."""
    encoded = tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=POSITIONS,
        return_tensors="pt",
    )
    return torch.as_tensor(encoded.input_ids)


def padded_as_open_clip(tokens: torch.Tensor) -> torch.Tensor:
    """The tokens (n, 77) with 0 for every end mark after the first, as ``open_clip.tokenize`` has it.

    A tokenizer whose padding token is "!" (id 0) would do the same, but read every "!" of a prompt as one.
    """
    ends = (tokens == _END_MARK).cumsum(dim=1)
    return tokens.masked_fill((ends > 0) & (ends.cumsum(dim=1) > 1), _OPEN_CLIP_PADDING)


def encode_tokens(model: DiffusionModel, tokens: torch.Tensor, *, clip_skip: int = 1) -> Conditions:
    """What the U-Net reads of the tokens (n, 77), by the model's text encoders. Differentiable.

    ``clip_skip`` counts as hosts and sd-scripts do: 1 uses all layers that the family reads.

    Raises:
        BadInput: clip skip is above the number of layers, or above 1 where the family has none.
    """
    check_clip_skip(model.structure, clip_skip)
    contexts: list[torch.Tensor] = []
    pooled = None
    for text, encoder in zip(model.structure.text, model.text_encoders, strict=True):
        context, pooled = _encoded(text, encoder, tokens, skipped=text.skipped + clip_skip - 1)
        contexts.append(context)
    context = contexts[0] if len(contexts) == 1 else torch.cat(contexts, dim=-1)
    return Conditions(context, pooled)


def _encoded(
    text: TextStructure, encoder: Any, tokens: torch.Tensor, *, skipped: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Context (n, 77, width) of one encoder, and what it pools."""
    if text.open_clip:
        tokens = padded_as_open_clip(tokens)
    if not skipped and text.normed:
        hidden: torch.Tensor = encoder(tokens).last_hidden_state
        return hidden, None
    output = encoder(tokens, output_hidden_states=True)
    # The first of the states is the embedding; a spare layer at the end may be missing.
    hidden = output.hidden_states[text.layers - skipped]
    if text.normed:
        hidden = encoder.text_model.final_layer_norm(hidden)
    return hidden, output.text_embeds if text.pooled else None


@torch.no_grad()
def encode_prompts(model: DiffusionModel, prompts: Sequence[str], *, clip_skip: int = 1) -> Conditions:
    """What the U-Net reads of each prompt, on the model's device.

    Equal prompts are encoded once.
    """
    distinct = list(dict.fromkeys(prompts))
    parts = [
        encode_tokens(
            model,
            tokenize(model.tokenizer, distinct[first : first + PROMPTS_PER_BATCH]).to(model.device),
            clip_skip=clip_skip,
        )
        for first in range(0, len(distinct), PROMPTS_PER_BATCH)
    ]
    places = {prompt: place for place, prompt in enumerate(distinct)}
    order = torch.tensor([places[prompt] for prompt in prompts], device=model.device)
    return joined(parts).rows(order)


def encode_guided(
    model: DiffusionModel, prompts: Sequence[str], negative: str, *, clip_skip: int = 1
) -> tuple[Conditions, Conditions]:
    """The same of the prompts, and of the one negative prompt, which SDXL reads as zeros where it is empty.

    So do A1111 (``sd_models_xl.py``, ``force_zero_embeddings``), Forge, and diffusers' pipeline by default.
    """
    both = encode_prompts(model, [*prompts, negative], clip_skip=clip_skip)
    count = len(prompts)
    last = both.rows(slice(count, None))
    zeros = model.structure.sized and not negative
    return both.rows(slice(count)), last.nothing() if zeros else last
