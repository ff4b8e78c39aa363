"""Blocks have the names that users of block weights know, in every family."""

from __future__ import annotations

import narrow_models as models
import pytest

from copier.checkpoint.blocks import block_of, block_of_module
from copier.checkpoint.family import Family
from copier.checkpoint.names import kohya_modules
from copier.checkpoint.targets import module_targets

UNET = "model.diffusion_model."


def test_the_modules_of_sd15_are_in_its_25_blocks_and_the_text_encoder():
    blocks = {block_of(module.ldm) for module in kohya_modules().values()}
    numbered = {f"IN{n:02d}" for n in range(1, 12)} | {f"OUT{n:02d}" for n in range(12)}
    assert blocks == {"BASE", "M00"} | numbered


@pytest.mark.parametrize(
    ("key", "block"),
    [
        (UNET + "input_blocks.0.0.weight", "IN00"),
        (UNET + "input_blocks.8.1.transformer_blocks.9.attn1.to_q.weight", "IN08"),
        (UNET + "middle_block.2.in_layers.2.weight", "M00"),
        (UNET + "output_blocks.11.1.proj_in.weight", "OUT11"),
        (UNET + "time_embed.0.weight", "OTHER"),
        ("first_stage_model.encoder.conv_in.weight", "OTHER"),
        ("conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight", "BASE"),
        ("text_encoders.t5xxl.transformer.encoder.block.3.layer.0.SelfAttention.q.weight", "BASE"),
        (UNET + "double_blocks.18.img_attn.qkv.weight", "DB18"),
        ("single_blocks.37.linear1.weight", "SB37"),
        ("joint_blocks.3.x_block.attn.qkv.weight", "JB03"),
        (UNET + "context_embedder.weight", "OTHER"),
    ],
)
def test_keys_are_in_the_blocks_of_their_family(key, block):
    assert block_of(key) == block


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sd3", "flux"])
def test_the_name_of_a_module_alone_gives_the_block_of_its_weight(family):
    checkpoint = models.header(getattr(models, f"{family}_file")())
    targets = module_targets(checkpoint)
    wrong = {
        name: target.key
        for name, target in targets.items()
        if block_of_module(name, Family(family)) != block_of(target.key)
    }
    assert wrong == {}
    assert len({block_of(target.key) for target in targets.values()}) >= 5
