"""SD 1.x's names against SD 1.5's real key set, kohya's real modules and diffusers' real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from copier.checkpoint import names
from copier.errors import UnknownName

SD15 = json.loads((Path(__file__).parent / "data" / "sd15.json").read_text(encoding="utf-8"))
CHECKPOINT = SD15["checkpoint"]
BUFFERS = set(names.sd1_buffers())


def keys(prefix):
    return {key for key in CHECKPOINT if key.startswith(prefix)}


def test_every_key_of_sd15_translates_and_comes_back():
    for prefix, there, back in (
        (names.UNET_PREFIX, names.diffusers_unet_from_ldm, names.ldm_from_diffusers_unet),
        (names.VAE_PREFIX, names.diffusers_vae_from_ldm, names.ldm_from_diffusers_vae),
        (names.TEXT_PREFIX, names.transformers_text_from_ldm, names.ldm_from_transformers_text),
    ):
        translated = {there(key) for key in keys(prefix)}
        assert len(translated) == len(keys(prefix)) > 190
        assert {back(key) for key in translated} == keys(prefix)
    covered = keys(names.UNET_PREFIX) | keys(names.VAE_PREFIX) | keys(names.TEXT_PREFIX)
    assert covered == set(CHECKPOINT)


def test_the_only_buffer_of_sd15_is_the_only_integer_tensor():
    assert {key for key, (dtype, _) in CHECKPOINT.items() if dtype == "I64"} == BUFFERS


def test_the_linear_modules_are_exactly_kohyas():
    unet, text = names.kohya_modules_unet(conv=False), names.kohya_modules_text()
    assert (len(unet), len(text)) == (192, 72)
    assert {module.kohya for module in (*unet, *text)} == set(SD15["linear"])


def test_the_conv_modules_are_exactly_kohyas():
    linear = set(names.kohya_modules_unet(conv=False))
    extra = {module.kohya for module in names.kohya_modules_unet(conv=True) if module not in linear}
    assert extra == set(SD15["locon_extra"])
    assert len(extra) == 86


def test_every_module_points_at_the_weight_of_its_shape():
    shapes = {**SD15["linear"], **SD15["locon_extra"]}
    for module in names.kohya_modules().values():
        assert CHECKPOINT[module.ldm][1] == shapes[module.kohya]
        assert names.module_from_ldm(module.ldm) == module == names.module_from_kohya(module.kohya)


def test_only_the_autoencoders_attention_is_squeezed():
    squeezed = {key for key in CHECKPOINT if names.squeezed_in_diffusers(key)}
    assert len(squeezed) == 8
    assert all(CHECKPOINT[key][1][2:] == [1, 1] for key in squeezed)


@pytest.mark.parametrize(
    ("translate", "key", "nearest"),
    [
        (names.ldm_from_diffusers_unet, "conv_in.wieght", "conv_in.weight"),
        (names.ldm_from_diffusers_unet, "down_blocks.3.attentions.0.proj_in.weight", "proj_in"),
        (names.diffusers_vae_from_ldm, "decoder.conv_in.weight", "first_stage_model.decoder"),
        (names.ldm_from_transformers_text, "text_model.final_layer_norm", "final_layer_norm.weight"),
        (names.transformers_text_from_ldm, "cond_stage_model.model.ln_final.weight", "did you mean"),
        (names.module_from_kohya, "lora_te_text_model_encoder_layers_12_mlp_fc1", "_mlp_fc1"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(translate, key, nearest):
    with pytest.raises(UnknownName, match=nearest):
        translate(key)


@pytest.fixture(scope="module")
def state_dicts():
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    widths = (32, 64, 96, 96)  # wider at the same levels as SD 1.5
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=widths, cross_attention_dim=32, attention_head_dim=2
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=2,
        latent_channels=4,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=12,
            num_attention_heads=1,
        )
    )
    return unet, vae, text


def test_diffusers_unet_has_exactly_our_keys_and_modules(state_dicts):
    state = state_dicts[0].state_dict()
    ours = {names.diffusers_unet_from_ldm(key): key for key in keys(names.UNET_PREFIX)}
    assert set(state) == set(ours)
    for name, tensor in state.items():
        assert len(CHECKPOINT[ours[name]][1]) == tensor.ndim
    for module in names.kohya_modules_unet(conv=True):
        found = state_dicts[0].get_submodule(module.diffusers)
        assert names.ldm_from_diffusers_unet(f"{module.diffusers}.weight") == module.ldm
        assert type(found).__name__ in ("Linear", "Conv2d")


def test_diffusers_autoencoder_has_exactly_our_keys(state_dicts):
    state = state_dicts[1].state_dict()
    ours = {names.diffusers_vae_from_ldm(key): key for key in keys(names.VAE_PREFIX)}
    assert set(state) == set(ours)
    for name, tensor in state.items():
        squeezed = 2 if names.squeezed_in_diffusers(ours[name]) else 0
        assert len(CHECKPOINT[ours[name]][1]) == tensor.ndim + squeezed


def test_transformers_text_encoder_has_exactly_our_keys(state_dicts):
    weights = keys(names.TEXT_PREFIX) - BUFFERS
    found = {names.ldm_from_transformers_text(key) for key in state_dicts[2].state_dict()}
    assert found - BUFFERS == weights
    for module in names.kohya_modules_text():
        assert type(state_dicts[2].get_submodule(module.diffusers)).__name__ == "Linear"
