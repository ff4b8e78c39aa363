"""Files that hold an autoencoder (VAE) alone, or a whole checkpoint whose autoencoder is to be used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from copier.checkpoint.header import Header
from copier.checkpoint.names import VAE_PREFIX, ldm_from_diffusers_vae
from copier.checkpoint.shapes import (
    LATENT_CHANNELS,
    autoencoder_shapes,
    autoencoder_widths,
    shape_problem,
)
from copier.errors import BadCheckpoint, UnknownName

_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_OLD_ATTENTION = re.compile(r"(mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.")
"""diffusers' names until version 0.17."""
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_TITLE = "an autoencoder of Stable Diffusion (KL-f8)"
_USABLE = "give one for SD 1.x, SD 2.x or SDXL, as a .safetensors file"


def autoencoder_keys(header: Header, name: str) -> Mapping[str, str]:
    """The key of each weight in a checkpoint -> its key in the file, which may be in any layout.

    LDM's with and without ``first_stage_model.``, or diffusers'. ``name`` is what messages call the file.

    Raises:
        BadCheckpoint: the file has no such autoencoder, or not all of it.
    """
    keys = {_in_checkpoint(key): key for key in header.tensors}
    keys.pop("", None)
    if not keys:
        raise BadCheckpoint(f"{name!r} has no autoencoder (VAE) in it: {_USABLE}")
    found = {key: header.tensors[theirs].shape for key, theirs in keys.items()}
    latent = found.get(f"{VAE_PREFIX}decoder.conv_in.weight", ())
    if len(latent) == 4 and latent[1] != LATENT_CHANNELS:
        raise BadCheckpoint(f"{name!r} has {latent[1]} latent channels, not {LATENT_CHANNELS}: {_USABLE}")
    try:
        wanted = autoencoder_shapes(autoencoder_widths(found))
    except KeyError as error:
        raise BadCheckpoint(f"{name!r} is incomplete: it lacks {error.args[0]!r}: {_USABLE}") from error
    except IndexError as error:
        raise BadCheckpoint(f"{name!r} has a number where {_TITLE} has a matrix: {_USABLE}") from error
    if problem := shape_problem(found, wanted, _TITLE):
        raise BadCheckpoint(f"{name!r} {problem}: {_USABLE}")
    return MappingProxyType({key: keys[key] for key in wanted})


def _in_checkpoint(key: str) -> str:
    """The key of the autoencoder's weight in a checkpoint; "" if it is of none."""
    inner = key.removeprefix(VAE_PREFIX).removeprefix("vae.")
    if not inner.startswith(_PARTS):
        return ""
    modern = _OLD_ATTENTION.sub(lambda match: f"{match[1]}.{_NEW_ATTENTION[match[2]]}.", inner)
    try:
        return ldm_from_diffusers_vae(modern)
    except UnknownName:
        return VAE_PREFIX + inner
