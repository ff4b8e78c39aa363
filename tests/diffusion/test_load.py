from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from copier.checkpoint import names
from copier.checkpoint.family import Family
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.writer import write_tensors
from copier.diffusion.load import load_checkpoint
from copier.diffusion.model import DiffusionModel
from copier.diffusion.networks import heads_of_64, unet_heads
from copier.diffusion.prompts import encode_prompts, encode_tokens, tokenize
from copier.errors import BadCheckpoint, BadInput


def read_all(path: Path) -> dict[str, torch.Tensor]:
    with TensorReader(path) as reader:
        return {key: reader.tensor(key) for key in reader.header.tensors}


def test_the_loaded_state_is_the_file_tensor_for_tensor(
    model: DiffusionModel, checkpoint: Path, tiny: ModuleType
) -> None:
    parts = {"unet": model.unet, "vae": model.vae, "text": model.text_encoder}
    mine, file = tiny.tensors(parts, torch.float32), read_all(checkpoint)
    assert set(mine) == set(file)
    assert len(file) == 1131
    for key, tensor in file.items():
        assert torch.equal(mine[key], tensor), key


def test_the_parts_compute_what_the_builders_parts_compute(
    model: DiffusionModel, tiny: ModuleType
) -> None:
    """A second route: the same weights in modules whose sizes are stated, not inferred."""
    theirs = tiny.modules()
    theirs["unet"].load_state_dict(model.unet.state_dict())
    theirs["vae"].load_state_dict(model.vae.state_dict())
    theirs["text"].load_state_dict(model.text_encoder.state_dict())
    tokens = tokenize(model.tokenizer, ["a photo of a cat"])
    latents, steps = torch.randn(1, 4, 8, 8), torch.tensor([300])
    with torch.no_grad():
        context = model.text_encoder(tokens).last_hidden_state
        assert torch.equal(context, theirs["text"](tokens).last_hidden_state)
        output = model.unet(latents, steps, context).sample
        assert torch.equal(output, theirs["unet"](latents, steps, context).sample)
        assert torch.equal(model.vae.decode(latents).sample, theirs["vae"].decode(latents).sample)
        other = model.unet(latents, steps, context * 0.5).sample
    assert output.std() > 0.05
    assert (output - other).abs().max() > 1e-3


def test_nothing_is_left_without_memory_and_nothing_asks_for_gradients(
    model: DiffusionModel,
) -> None:
    for part in (model.unet, model.vae, model.text_encoder):
        assert not part.training
        for tensor in (*part.parameters(), *part.buffers()):
            assert tensor.device == torch.device("cpu")
            assert not tensor.requires_grad
    assert (model.widths, model.context_width) == ((64, 32, 64, 64), 64)
    assert not model.velocity and model.family is Family.SD1


def test_weights_come_in_the_dtype_asked_for(checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint, dtype=torch.bfloat16)
    assert {p.dtype for p in model.unet.parameters()} == {torch.bfloat16}


def test_heads_are_sd15s_and_follow_the_width_below() -> None:
    assert [unet_heads(width) for width in (320, 128, 64, 32)] == [8, 4, 2, 1]
    assert [heads_of_64(width) for width in (768, 64, 32)] == [12, 1, 1]


def test_velocity_prediction_is_known_by_the_metadata(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    write_tensors(path, read_all(checkpoint), {"modelspec.prediction_type": "v"})
    assert load_checkpoint(path).velocity


def test_clip_skip_counts_layers_from_the_end_and_keeps_the_final_norm(
    model: DiffusionModel,
) -> None:
    tokens = tokenize(model.tokenizer, ["a cat"])
    text = model.text_encoder.text_model
    with torch.no_grad():
        states = model.text_encoder(tokens, output_hidden_states=True).hidden_states
        one, two = (encode_tokens(model, tokens, clip_skip=n).context for n in (1, 2))
        assert torch.allclose(one, text.final_layer_norm(states[-1]), atol=1e-6)
        # The last layer, applied by hand to what clip skip 2 leaves, gives clip skip 1.
        layer = text.encoder.layers[-1]
        mask = torch.full((77, 77), float("-inf")).triu(1)[None, None]
        last = layer(states[-2], mask, mask)[0]
    assert torch.allclose(text.final_layer_norm(last), one, atol=1e-5)
    assert torch.equal(two, text.final_layer_norm(states[-2]))
    assert not torch.allclose(one, two, atol=1e-3)
    with pytest.raises(BadInput, match="1 to 12"):
        encode_tokens(model, tokens, clip_skip=13)


def test_prompts_keep_their_order_and_equal_ones_are_equal(model: DiffusionModel) -> None:
    prompts = ["a cat", "", "a red star", "a cat"]
    encoded = encode_prompts(model, prompts).context
    assert encoded.shape == (4, 77, 64)
    assert torch.equal(encoded[0], encoded[3])
    for prompt, row in zip(prompts, encoded, strict=True):
        assert torch.allclose(row, encode_prompts(model, [prompt]).context[0], atol=1e-5)
    assert (encoded[0] - encoded[2]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.diffusion_model.out.2.bias"), "lacks 'model.diffusion_model.out.2.bias'"),
        (lambda t: t.pop("first_stage_model.encoder.down.0.block.0.conv2.weight"), "it lacks 'first_stage"),
        (lambda t: t.update({"cond_stage_model.transformer.more": torch.ones(1)}), "also has 'cond_stage"),
        (lambda t: t.update({"model.diffusion_model.out.2.bias": torch.ones(5)}), "the shape [5], not [4]"),
        (lambda t: t.update({"conditioner.embedders.0.x": torch.ones(1)}), "refiner"),
        (lambda t: t.update({f"x.lora_{up}.weight": torch.ones(1, 1) for up in ("up", "down")}), "a LoRA"),
        (
            lambda t: t.update({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(64, 9, 3, 3)}),
            "inpainting",
        ),
        (
            lambda t: t.update(
                {names.TEXT_PREFIX + "text_model.embeddings.token_embedding.weight": torch.ones(5, 64)}
            ),
            "in the shape [5, 64], not [49408, 64]",
        ),
        (
            lambda t: t.update(
                {names.UNET_PREFIX + "input_blocks.4.0.out_layers.3.weight": torch.ones(50, 1, 3, 3)}
            ),
            "not [50, 64, 3, 3]",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_no_sd1_checkpoint_is_refused_by_name(
    checkpoint: Path, tmp_path: Path, change: object, message: str
) -> None:
    tensors = read_all(checkpoint)
    change(tensors)  # type: ignore[operator]
    path = tmp_path / "bad.safetensors"
    write_tensors(path, tensors)
    with pytest.raises(BadCheckpoint) as caught:
        load_checkpoint(path)
    assert message in str(caught.value)


def test_other_tensors_beside_the_model_are_ignored(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.safetensors"
    write_tensors(path, {**read_all(checkpoint), "model_ema.decay": torch.ones(1)})
    load_checkpoint(path)


def test_a_missing_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no file"):
        load_checkpoint(tmp_path / "none.safetensors")
