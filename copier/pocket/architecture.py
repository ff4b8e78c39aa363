"""The networks of the pocket checkpoint: Stable Diffusion 1.x, narrower.

Blocks, layers and key names are SD 1.5's; only the widths differ. LDM normalises in 32 groups, so a
level of 32 channels would be normalised channel by channel, which wipes out the mean (the colour):
the outer levels have 64. The second level differs from the others because SD 1.5 has its skip
convolutions (``nin_shortcut``, ``skip_connection``) exactly where the width changes.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from copier.diffusion.tokenizer import VOCABULARY

AUTOENCODER_WIDTHS = (64, 128, 64, 64)
UNET_WIDTHS = (64, 128, 64, 64)
UNET_HEADS = 2
TEXT_WIDTH = 64
TEXT_HEADS = 1
TEXT_LAYERS = 12
RANDOM_TEXT_LAYERS = 2
STREAM_GAIN = 8.0
"""Start of the autoencoder's residual stream: large beside what one optimiser step does to a branch."""
LATENT_SCALE = 0.18215
"""SD 1.x's latent scale, hard-coded in hosts and sd-scripts: latents times this have unit variance."""


def build_autoencoder() -> AutoencoderKL:
    """KL-f8 autoencoder, 4 latent channels, random weights.

    With 64 channels in 32 groups a norm sees two channels: two constants always come out as +1 and
    -1, and the colour of a plain background is lost. So the residual path starts as an identity
    that lets colours through, and every group gets a *carrier* before the last norm: a channel
    with a strong, fixed variance (a frame that zero padding draws), beside which the other channel
    passes linearly.
    """
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=AUTOENCODER_WIDTHS,
        layers_per_block=2,
        latent_channels=4,
        sample_size=128,
        scaling_factor=LATENT_SCALE,
    )
    with torch.no_grad():
        _start_as_identity(model)
        _add_carriers(model.encoder.mid_block.resnets[1])
        _add_carriers(model.decoder.mid_block.resnets[0])
        for part in (model.encoder, model.decoder):
            part.conv_in.weight[0::2] *= STREAM_GAIN
            part.conv_out.weight[:, 1::2] = 0.0
        _keep_centre(model.encoder.conv_out)
        _keep_centre(model.decoder.conv_in)
    return model


def _start_as_identity(model: AutoencoderKL) -> None:
    """Residual branches small, shortcuts and resampling convolutions identities."""
    for name, module in model.named_modules():
        if name.endswith("conv2"):
            module.weight.mul_(0.2)
        elif name.endswith("conv_shortcut"):
            out_width, in_width = module.weight.shape[:2]
            module.weight.copy_(torch.eye(out_width, in_width)[:, :, None, None])
        elif name.endswith("samplers.0.conv"):
            torch.nn.init.zeros_(module.weight)
            width = torch.arange(module.weight.shape[0])
            if "down" in name:
                module.weight[width, width, :2, :2] = 0.25
            else:
                module.weight[width, width, 1, 1] = 1.0


def _keep_centre(convolution: torch.nn.Conv2d) -> None:
    """Only the middle tap, three times as strong: no frame from zero padding."""
    middle = 3.0 * convolution.weight[:, :, 1, 1]
    torch.nn.init.zeros_(convolution.weight)
    convolution.weight[:, :, 1, 1] = middle


def _add_carriers(block: torch.nn.Module, amplitude: float = 2.0 * STREAM_GAIN) -> None:
    """Let a residual block add a frame of ``amplitude`` to every odd channel.

    One channel is made constant, silu(2) = 1.76; zero padding takes a third of the kernel away at
    the rim, and the bias cancels it everywhere else.
    """
    constant = float(torch.nn.functional.silu(torch.tensor(2.0)))
    block.norm2.weight[1] = 0.0
    block.norm2.bias[1] = 2.0
    tap = -amplitude / (3 * constant)
    block.conv2.weight[1::2, 1] = tap
    block.conv2.bias[1::2] -= 9 * tap * constant


def build_unet() -> UNet2DConditionModel:
    """SD 1.x's U-Net for 16 x 16 latents and a context of ``TEXT_WIDTH``, random weights."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=UNET_WIDTHS,
        cross_attention_dim=TEXT_WIDTH,
        # diffusers calls SD 1.x's number of heads attention_head_dim, for historical reasons.
        attention_head_dim=UNET_HEADS,
    )


def build_text_encoder(vocabulary: int = VOCABULARY) -> CLIPTextModel:
    """CLIP text encoder with ``vocabulary`` rows; the layers past the first two start as identities."""
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=TEXT_HEADS,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=0,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )
    with torch.no_grad():
        for layer in model.text_model.encoder.layers[RANDOM_TEXT_LAYERS:]:
            for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
    return model
