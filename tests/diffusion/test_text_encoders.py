"""OpenCLIP's text encoder written out, and what each family reads of it."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional

from copier.checkpoint.family import Family
from copier.diffusion.load import load_checkpoint
from copier.diffusion.prompts import encode_guided, encode_prompts, padded_as_open_clip, tokenize
from copier.errors import BadInput

PROMPT = "a red star!"


def open_clip(tensors: dict[str, torch.Tensor], prefix: str, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The state (77, width) before the first block and after each: one head, exact GELU, causal attention."""
    w = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    x = w["token_embedding.weight"][tokens] + w["positional_embedding"]
    width = x.shape[-1]
    mask = torch.full((77, 77), -math.inf).triu(1)
    states = [x]
    number = 0
    while f"transformer.resblocks.{number}.ln_1.weight" in w:
        part = f"transformer.resblocks.{number}."

        def linear(y: torch.Tensor, name: str, part: str = part) -> torch.Tensor:
            return y @ w[f"{part}{name}.weight"].T + w[f"{part}{name}.bias"]

        y = functional.layer_norm(x, (width,), w[f"{part}ln_1.weight"], w[f"{part}ln_1.bias"])
        fused = y @ w[f"{part}attn.in_proj_weight"].T + w[f"{part}attn.in_proj_bias"]
        q, k, v = fused.split(width, dim=-1)
        x = x + linear(torch.softmax(q @ k.T / math.sqrt(width) + mask, dim=-1) @ v, "attn.out_proj")
        y = functional.layer_norm(x, (width,), w[f"{part}ln_2.weight"], w[f"{part}ln_2.bias"])
        x = x + linear(functional.gelu(linear(y, "mlp.c_fc")), "mlp.c_proj")
        states.append(x)
        number += 1
    return states


def normed(tensors: dict[str, torch.Tensor], prefix: str, x: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(
        x, x.shape[-1:], tensors[f"{prefix}ln_final.weight"], tensors[f"{prefix}ln_final.bias"]
    )


def test_context_and_pooled_are_those_of_the_written_out_encoder(
    narrow: Any, families: ModuleType
) -> None:
    model, tensors = narrow.model, narrow.tensors
    ids = model.tokenizer(PROMPT).input_ids
    tokens = torch.tensor(ids + [0] * (77 - len(ids)))
    mine = encode_prompts(model, [PROMPT])
    if model.family is Family.SD2:
        states = open_clip(tensors, families.SD2_TEXT, tokens)
        expected = normed(tensors, families.SD2_TEXT, states[-2])
        assert len(states) == 25 and mine.pooled is None
    else:
        states = open_clip(tensors, families.CLIP_G, tokens)
        end = normed(tensors, families.CLIP_G, states[-1])[len(ids) - 1]
        assert mine.pooled is not None
        torch.testing.assert_close(
            mine.pooled[0], end @ tensors[f"{families.CLIP_G}text_projection"], atol=1e-4, rtol=1e-4
        )
        clip = model.text_encoders[0](tokenize(model.tokenizer, [PROMPT]), output_hidden_states=True)
        expected = torch.cat([clip.hidden_states[11][0], states[-2]], dim=-1)
        assert len(states) == 33 and len(clip.hidden_states) == 13
    torch.testing.assert_close(mine.context[0], expected, atol=1e-4, rtol=1e-4)


def test_the_rows_of_several_prompts_are_those_of_each(narrow: Any) -> None:
    model = narrow.model
    prompts = ["a cat", PROMPT, "a cat"]
    together, negative = encode_guided(model, prompts, "bad")
    for number, prompt in enumerate(prompts):
        one = encode_prompts(model, [prompt])
        torch.testing.assert_close(together.context[number], one.context[0], atol=1e-4, rtol=1e-4)
        if one.pooled is not None and together.pooled is not None:
            torch.testing.assert_close(together.pooled[number], one.pooled[0], atol=1e-4, rtol=1e-4)
    assert (len(together), len(negative)) == (3, 1)
    empty = encode_guided(model, prompts, "")[1].context
    assert bool(empty.any()) is (model.family is Family.SD2)


def test_an_exclamation_mark_stays_one_and_padding_is_zero() -> None:
    tokens = torch.tensor([[49406, 256, 49407, *[49407] * 74]])
    padded = padded_as_open_clip(tokens)
    assert padded[0, :3].tolist() == [49406, 256, 49407]
    assert not padded[0, 3:].any()
    full = torch.tensor([[49406, *[320] * 75, 49407]])
    assert torch.equal(padded_as_open_clip(full), full)


def test_clip_skip_is_refused(narrow: Any) -> None:
    with pytest.raises(BadInput, match="has none"):
        encode_prompts(narrow.model, ["a"], clip_skip=2)


def test_an_sd2_file_without_its_last_layer_reads_the_same(families: ModuleType, tmp_path: Path) -> None:
    """diffusers and sd-scripts keep 23 layers."""
    whole = families.write_family(tmp_path / "whole.safetensors", Family.SD2)
    short = families.write_family(tmp_path / "short.safetensors", Family.SD2, without=".resblocks.23.")
    one, other = (encode_prompts(load_checkpoint(path), [PROMPT]).context for path in (whole, short))
    assert torch.equal(one, other)
