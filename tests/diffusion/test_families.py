"""SD 2.x and SDXL against diffusers' own way: its conversion of LDM's keys, its sizes, its pipelines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders import single_file_utils
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from copier.checkpoint.family import Family
from copier.diffusion.load import load_checkpoint
from copier.diffusion.model import DiffusionModel
from copier.diffusion.sample import sample, starting_noise
from copier.diffusion.tokenizer import write_tokenizer
from copier.model_options import ModelOptions, Prediction, Switch

PROMPTS = ["a red star on a green field", "a cat"]
SIZE = {"width": 64, "height": 128}
GUIDANCE = 4.0
CLOSE = 1e-4


@dataclass(frozen=True)
class Loaded:
    """One family: its file, the model, and the same built the second way."""

    family: Family
    path: Path
    model: DiffusionModel
    theirs: dict[str, Any]


@pytest.fixture(scope="module")
def loaded(narrow: Any, families: ModuleType) -> Loaded:
    family = narrow.model.family
    return Loaded(family, narrow.path, narrow.model, modules(family, narrow.tensors, families))


def modules(family: Family, tensors: dict[str, torch.Tensor], families: ModuleType) -> dict[str, Any]:
    """The parts as diffusers converts them, in modules whose sizes are stated, not inferred."""
    sdxl = family is Family.SDXL
    unet = UNet2DConditionModel(
        block_out_channels=families.SDXL_WIDTHS if sdxl else families.SD2_WIDTHS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
        if sdxl
        else (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
        if sdxl
        else ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        attention_head_dim=1,
        transformer_layers_per_block=(1, 2, 10) if sdxl else 1,
        cross_attention_dim=(2 if sdxl else 1) * families.TEXT,
        use_linear_projection=True,
        **{
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": families.LABEL,
        }
        if sdxl
        else {},
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=families.VAE_WIDTHS,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.13025 if sdxl else 0.18215,
    )
    unet.load_state_dict(single_file_utils.convert_ldm_unet_checkpoint(dict(tensors), dict(unet.config)))
    vae.load_state_dict(single_file_utils.convert_ldm_vae_checkpoint(dict(tensors), dict(vae.config)))
    parts = {"unet": unet, "vae": vae}
    if sdxl:
        first = text_model("quick_gelu", 12, families.TEXT)
        second = text_model("gelu", 32, families.TEXT, pooled=True)
        clip = single_file_utils.convert_ldm_clip_checkpoint(dict(tensors), remove_prefix=families.CLIP_L)
        first.load_state_dict(clip)
        parts |= {"text_encoder": first, "text_encoder_2": second}
    else:
        second = text_model("gelu", 23, families.TEXT)
        parts["text_encoder"] = second
    prefix = families.CLIP_G if sdxl else families.SD2_TEXT
    converted = single_file_utils.convert_open_clip_checkpoint(second, dict(tensors), prefix=prefix)
    left = second.load_state_dict(converted, strict=False)
    assert left.missing_keys == []
    assert sdxl or all("layers.23" in key or "text_projection" in key for key in left.unexpected_keys)
    return {name: part.eval() for name, part in parts.items()}


def text_model(activation: str, layers: int, width: int, *, pooled: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=1,
        hidden_act=activation,
        eos_token_id=49407,
    )
    return (CLIPTextModelWithProjection if pooled else CLIPTextModel)(config)


def pipeline(loaded: Loaded, folder: Path, **scheduler: Any) -> Any:
    """diffusers' pipeline, with tokenizers that pad as the real models' do."""
    ddim = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, **scheduler,
    )  # fmt: skip
    padded = CLIPTokenizer.from_pretrained(str(write_tokenizer(folder / "0", padding="!")))
    common = {**loaded.theirs, "scheduler": ddim}
    if loaded.family is Family.SDXL:
        plain = CLIPTokenizer.from_pretrained(str(write_tokenizer(folder / "1")))
        made = StableDiffusionXLPipeline(**common, tokenizer=plain, tokenizer_2=padded, add_watermarker=False)
    else:
        made = StableDiffusionPipeline(
            **common, tokenizer=padded, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def their_pictures(pipe: Any, prompts: list[str], negative: str | None, *, steps: int) -> np.ndarray:
    result = pipe(
        prompts, negative_prompt=negative and [negative] * len(prompts), num_inference_steps=steps,
        guidance_scale=GUIDANCE, latents=starting_noise(range(len(prompts)), **SIZE), output_type="np",
        **SIZE,
    )  # fmt: skip
    return np.asarray(result.images)


def drawn(model: DiffusionModel, prompts: list[str], *, negative: str, steps: int) -> np.ndarray:
    seeds = range(len(prompts))
    return sample(model, prompts, seeds, negative=negative, steps=steps, guidance=GUIDANCE, **SIZE)


def test_every_weight_is_where_diffusers_conversion_puts_it(loaded: Loaded) -> None:
    model, theirs = loaded.model, loaded.theirs
    mine = {"unet": model.unet, "vae": model.vae, "text_encoder": model.text_encoders[0]}
    if loaded.family is Family.SDXL:
        mine["text_encoder_2"] = model.text_encoders[1]
    for name, part in mine.items():
        state, expected = part.state_dict(), theirs[name].state_dict()
        spare = {key for key in state if loaded.family is Family.SD2 and ".layers.23." in key}
        assert set(state) - spare == set(expected), name
        for key, tensor in expected.items():
            assert torch.equal(state[key], tensor), (name, key)


@pytest.mark.parametrize(("negative", "prompts"), [("bad", PROMPTS[:1]), (None, PROMPTS)])
def test_a_picture_is_what_diffusers_pipeline_draws(
    loaded: Loaded, negative: str | None, prompts: list[str], tmp_path: Path
) -> None:
    steps = 3 - len(prompts)
    theirs = their_pictures(pipeline(loaded, tmp_path), prompts, negative, steps=steps)
    mine = drawn(loaded.model, prompts, negative=negative or "", steps=steps)
    assert mine.shape == (len(prompts), 128, 64, 3)
    np.testing.assert_allclose(mine, theirs, atol=CLOSE)
    if negative:
        assert np.abs(mine - drawn(loaded.model, prompts, negative="", steps=steps)).max() > 0.1


def test_velocity_with_zero_terminal_snr_too(loaded: Loaded, tmp_path: Path) -> None:
    options = ModelOptions(prediction=Prediction.VELOCITY, zero_terminal_snr=Switch.ON)
    model = load_checkpoint(loaded.path, options)
    assert model.velocity and model.predicts.zero_terminal_snr
    pipe = pipeline(
        loaded, tmp_path, prediction_type="v_prediction", rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )  # fmt: skip
    one = PROMPTS[:1]
    mine = drawn(model, one, negative="bad", steps=2)
    np.testing.assert_allclose(mine, their_pictures(pipe, one, "bad", steps=2), atol=CLOSE)
    assert np.abs(mine - drawn(loaded.model, one, negative="bad", steps=2)).max() > 0.1
