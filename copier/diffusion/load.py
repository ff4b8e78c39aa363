"""Loads a checkpoint of SD 1.x, SD 2.x or SDXL, one safetensors file in LDM layout, into diffusers' modules.

No hub and no configuration file is asked: family and sizes follow from the keys and shapes in the file's
header; ``copier.checkpoint.structure`` has what they do not tell.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from copier.checkpoint.autoencoder_file import autoencoder_keys
from copier.checkpoint.family import Family
from copier.checkpoint.header import Header
from copier.checkpoint.names import UNET_PREFIX, VAE_PREFIX
from copier.checkpoint.prediction import parameterisation
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.shapes import POSITIONS, Sizes, autoencoder_widths
from copier.checkpoint.sources import Source, autoencoder_sources, text_sources, unet_sources
from copier.checkpoint.targets import Target, module_targets
from copier.checkpoint.whole import whole_checkpoint
from copier.diffusion.model import UNET, DiffusionModel, ModulePath
from copier.diffusion.networks import build_autoencoder, build_text_encoder, build_unet
from copier.diffusion.tokenizer import load_tokenizer
from copier.errors import BadCheckpoint
from copier.model_options import AS_IT_IS, ModelOptions

log = logging.getLogger(__name__)

Sources = Mapping[str, Source]


def load_checkpoint(
    path: str | Path,
    options: ModelOptions = AS_IT_IS,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer_folder: Path | None = None,
) -> DiffusionModel:
    """The checkpoint at ``path`` on ``device`` in ``dtype``, with the autoencoder that ``options`` name.

    SDXL's autoencoder overflows in float16 and is then kept in float32. ``tokenizer_folder`` keeps the
    tokenizer's files for the next time. Clip skip is no property of a loaded model: see ``prompts``.

    Raises:
        BadInput: there is no such file.
        BadCheckpoint: it is not a whole checkpoint of one of the families; names the first keys or
            shapes that are wrong.
    """
    path, device = Path(path), torch.device(device)
    with TensorReader(path) as reader:
        sizes = whole_checkpoint(reader.header, path.name)
        unet, unet_names = _unet(reader, sizes, device, dtype)
        vae = _autoencoder(options.vae or reader, sizes, device, dtype)
        texts = [_text_encoder(reader, sizes, number, device, dtype) for number in range(len(sizes.text))]
        predicts = parameterisation(reader.header, options)
        places = [(UNET, unet_names), *((str(i), names) for i, (_, names) in enumerate(texts))]
        _note_others(reader, sizes)
        modules = _module_paths(reader.header, places)
    return DiffusionModel(
        path=path,
        header=reader.header,
        family=sizes.family,
        unet=unet,
        vae=vae,
        text_encoders=tuple(encoder for encoder, _ in texts),
        tokenizer=load_tokenizer(tokenizer_folder),
        device=device,
        dtype=dtype,
        widths=sizes.unet,
        context_width=sizes.context,
        predicts=predicts,
        modules=modules,
    )


def _unet(
    reader: TensorReader, sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> tuple[Any, Sources]:
    unet = _without_memory(lambda: build_unet(sizes), reader.path)
    sources = unet_sources(reader.header.tensors)
    return _filled(unet, reader, sources, device, dtype), sources


def _autoencoder(
    file: TensorReader | Path, sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> Any:
    """The autoencoder in the checkpoint, or in a file of the user's own."""
    if isinstance(file, Path):
        with TensorReader(file) as reader:
            return _autoencoder(reader, sizes, device, dtype)
    keys = autoencoder_keys(file.header, file.path.name)
    widths = autoencoder_widths({key: file.info(theirs).shape for key, theirs in keys.items()})
    vae = _without_memory(lambda: build_autoencoder(widths, sizes.structure.latent_scale), file.path)
    sources = {
        ours: Source(keys[source.key]) for ours, source in autoencoder_sources(vae.state_dict()).items()
    }
    overflows = sizes.family is Family.SDXL and dtype is torch.float16
    return _filled(vae, file, sources, device, torch.float32 if overflows else dtype)


def _text_encoder(
    reader: TensorReader, sizes: Sizes, number: int, device: torch.device, dtype: torch.dtype
) -> tuple[Any, Sources]:
    text, size = sizes.structure.text[number], sizes.text[number]
    encoder = _without_memory(lambda: build_text_encoder(text, size), reader.path)
    sources = text_sources(text, size, encoder.state_dict())
    encoder = _filled(encoder, reader, sources, device, dtype)
    # Not in the state dict, so still without memory; SD 1.x files hold it rounded at times.
    encoder.text_model.embeddings.position_ids = torch.arange(POSITIONS, device=device).expand((1, -1))
    return encoder, sources


def _without_memory(build: Callable[[], Any], path: Path) -> Any:
    try:
        with torch.device("meta"):
            return build()
    except ValueError as error:
        raise BadCheckpoint(f"{path.name!r} has widths that no such model can have: {error}") from error


def _filled(
    module: Any, reader: TensorReader, sources: Sources, device: torch.device, dtype: torch.dtype
) -> Any:
    """The module with the file's weights, read tensor by tensor; in evaluation mode, without gradients."""
    shapes = {key: tensor.shape for key, tensor in module.state_dict().items()}
    wanted: dict[str, list[str]] = {}
    for key in shapes:
        wanted.setdefault(sources[key].key, []).append(key)
    state = {}
    for theirs, keys in wanted.items():
        tensor = reader.tensor(theirs)
        for key in keys:
            part = _part(tensor, sources[key])
            state[key] = part.reshape(shapes[key]).to(device=device, dtype=dtype)
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def _part(tensor: torch.Tensor, source: Source) -> torch.Tensor:
    if source.rows is not None:
        tensor = tensor[slice(*source.rows)]
    return tensor.T.contiguous() if source.transposed else tensor


def _module_paths(header: Header, places: list[tuple[str, Sources]]) -> dict[str, ModulePath]:
    """Where each name is that a LoRA can call a weight by, of those that were loaded."""
    loaded = {
        Target(source.key, source.rows): ModulePath(part, key.removesuffix(".weight"))
        for part, sources in places
        for key, source in sources.items()
        if key.endswith(".weight") and not source.transposed
    }
    return {name: loaded[target] for name, target in module_targets(header).items() if target in loaded}


def _note_others(reader: TensorReader, sizes: Sizes) -> None:
    prefixes = (UNET_PREFIX, VAE_PREFIX, *(text.prefix for text in sizes.structure.text))
    others = sum(not key.startswith(prefixes) for key in reader.header.tensors)
    if others:
        log.info("%s: %d tensors of no part of the model are ignored", reader.path.name, others)
