"""Install the pocket checkpoint into a WebUI: the file, the ``.yaml`` beside it, the text encoder's config.

A1111 builds a checkpoint of other widths from ``<name>.yaml`` beside it; the text encoder's config and
tokenizer are a folder that the yaml names by its absolute path. (Forge recognises only full widths.)
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from copier.checkpoint.header import read_header
from copier.diffusion.tokenizer import write_tokenizer
from copier.digest import file_digest
from copier.errors import BadInput, CopierError
from copier.pocket.architecture import (
    AUTOENCODER_WIDTHS,
    LATENT_SCALE,
    TEXT_HEADS,
    TEXT_LAYERS,
    TEXT_WIDTH,
    UNET_HEADS,
    UNET_WIDTHS,
    VOCABULARY,
)
from copier.pocket.checkpoint import NAME, TITLE, checkpoint_path
from copier.temporary import replace_file

_CHECKPOINTS = Path("models") / "Stable-diffusion"
_TEXT_ENCODER = Path("models") / f"{NAME}-text-encoder"

_YAML = """\
# Written by Copier for its pocket checkpoint: Stable Diffusion 1.x, narrower.
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: "jpg"
    cond_stage_key: "txt"
    image_size: 16
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: {scale}
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 16
        in_channels: 4
        out_channels: 4
        model_channels: {unet}
        attention_resolutions: [4, 2, 1]
        num_res_blocks: 2
        channel_mult: {unet_multiples}
        num_heads: {heads}
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: {text}
        use_checkpoint: false
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 128
          in_channels: 3
          out_ch: 3
          ch: {autoencoder}
          ch_mult: {autoencoder_multiples}
          num_res_blocks: 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: {version}
"""

_SIGNATURE = _YAML.partition("\n")[0].encode()
"""How the yaml begins: by it one of ours is told from another."""


def yaml_text(text_encoder: Path) -> str:
    """The config that A1111 reads; ``text_encoder`` is the absolute path of the config's folder."""
    return _YAML.format(
        scale=LATENT_SCALE,
        unet=UNET_WIDTHS[0],
        unet_multiples=[width // UNET_WIDTHS[0] for width in UNET_WIDTHS],
        heads=UNET_HEADS,
        text=TEXT_WIDTH,
        autoencoder=AUTOENCODER_WIDTHS[0],
        autoencoder_multiples=[width // AUTOENCODER_WIDTHS[0] for width in AUTOENCODER_WIDTHS],
        version=json.dumps(text_encoder.as_posix()),
    )


def text_config() -> dict[str, object]:
    """transformers' config of the text encoder."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "projection_dim": TEXT_WIDTH,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": TEXT_HEADS,
        "max_position_embeddings": 77,
        "vocab_size": VOCABULARY,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-05,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def install(webui: Path) -> list[Path]:
    """Copy the checkpoint with what A1111 needs into the WebUI's folders; returns the files.

    Files that are there already with the same content stay; those that an earlier version of this program
    wrote are replaced; another checkpoint or yaml of that name is refused before anything is written.

    Raises:
        BadInput: the folder is no WebUI's, or holds another file of the same name.
    """
    webui = webui.expanduser().resolve()
    folder = webui / _CHECKPOINTS
    if not folder.is_dir():
        raise BadInput(
            f"{webui} has no folder {_CHECKPOINTS.as_posix()}: give the folder of the WebUI itself, "
            "the one with webui.py"
        )
    source = checkpoint_path()
    target = folder / source.name
    if target.exists() and not _is_ours(target):
        raise BadInput(f"{target} exists and is another file: rename it first")
    config = target.with_suffix(".yaml")
    if config.exists() and not config.read_bytes().startswith(_SIGNATURE):
        raise BadInput(f"{config} exists and is another file: rename it first")
    encoder = webui / _TEXT_ENCODER
    try:
        encoder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the folder {encoder} cannot be made ({error.strerror}): make room for it") from error
    for place in (folder, encoder):
        if not os.access(place, os.W_OK | os.X_OK):
            raise BadInput(f"the folder {place} is write-protected: allow writing there first")
    write_tokenizer(encoder)
    _write(encoder / "config.json", json.dumps(text_config(), indent=1) + "\n")
    _write(config, yaml_text(encoder))
    if not target.exists() or file_digest(target) != file_digest(source):
        replace_file(target, source.read_bytes())
    return [target, config, *sorted(encoder.iterdir())]


def _is_ours(path: Path) -> bool:
    """Whether the file is a pocket checkpoint, of this version of the program or another."""
    try:
        return read_header(path).metadata.get("modelspec.title") == TITLE
    except CopierError:
        return False


def _write(path: Path, text: str) -> None:
    content = text.encode()
    if not path.is_file() or path.read_bytes() != content:
        replace_file(path, content)
