"""LoRA layers (peft's) on exactly the modules that kohya's sd-scripts trains, and their export."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import torch
from peft import LoraConfig, LoraModel
from torch.nn import functional

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.family import Family
from copier.checkpoint.names import kohya_modules_text, kohya_modules_unet
from copier.checkpoint.targets import trained_names
from copier.diffusion.model import DiffusionModel
from copier.errors import BadInput
from copier.ops.lora_file import network_metadata
from copier.recipe import LossWeighting, TrainingSpec

ADAPTER = "copier"
MERGING_FACTOR = 6.0
"""Three by multiplications alone; a LoRA beside its weight also passes over the activations more often
(measured on two CPU cores, widths of 64 to 512, rank 16: 0.31 s a step with 6, 0.34 with 3, 0.39 without)."""


class LoraModules:
    """LoRA layers in a U-Net, and optionally a text encoder; a context manager that removes them.

    The base weights stay frozen and untouched. The factors are float32 whatever the base is; they
    start as kohya's do: down uniform (Kaiming, a = sqrt(5)), up zero, so the start changes nothing.
    """

    def __init__(self, model: DiffusionModel, spec: TrainingSpec, generator: torch.Generator) -> None:
        """On the U-Net and, if ``spec`` says so, the text encoders; ``generator`` (CPU) draws the start."""
        self._spec = spec
        self._tuners: list[LoraModel] = []
        self._layers: dict[str, Any] = {}
        try:
            for part, paths in trained_paths(model, spec).items():
                self._inject(model.part(part), paths)
            self._initialise(generator)
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> LoraModules:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Put the original modules back. Harmless when repeated."""
        while self._tuners:
            self._tuners.pop().unload()
        self._layers = {}

    @contextlib.contextmanager
    def at(self, multiplier: float) -> Iterator[None]:
        """Within, the LoRA counts ``multiplier`` times; 0 is the checkpoint alone, -1 the opposite change."""
        before = {name: layer.scaling[ADAPTER] for name, layer in self._layers.items()}
        for layer in self._layers.values():
            layer.scaling[ADAPTER] = multiplier * self._scale_of(layer)
        try:
            yield
        finally:
            for name, scale in before.items():
                self._layers[name].scaling[ADAPTER] = scale

    def parameters(self) -> list[torch.nn.Parameter]:
        """All factors, down before up, in kohya's order of the modules."""
        return [factor.weight for layer in self._layers.values() for factor in _factors(layer)]

    def weights(self) -> LoraWeights:
        """A copy of the LoRA as it is now, on the CPU."""
        deltas = {}
        for name, layer in self._layers.items():
            down, up = (factor.weight.detach().float().cpu().clone() for factor in _factors(layer))
            deltas[name] = LowRankDelta(up=up, down=down, alpha=self._rank_of(layer)[1])
        return LoraWeights(deltas)

    @torch.no_grad()
    def start_from(self, lora: LoraWeights) -> None:
        """Let training start at ``lora`` instead of nothing.

        A lower rank is filled up: its further columns of up are zero, so the delta is the same.

        Raises:
            BadInput: the LoRA has modules that are not trained, another shape or a higher rank.
        """
        extra = [name for name in lora if name not in self._layers]
        if extra:
            raise BadInput(
                f"the LoRA to start from has {len(extra)} modules that this training leaves alone, "
                f"for instance {extra[0]!r}: train the text encoder or convolutions as it does"
            )
        for name, delta in lora.items():
            down, up = (factor.weight for factor in _factors(self._layers[name]))
            rank, alpha = self._rank_of(self._layers[name])
            if delta.rank > rank:
                raise BadInput(
                    f"the LoRA to start from has rank {delta.rank} in {name!r}, the training has "
                    f"{rank}: raise the training's rank, or resize the LoRA first"
                )
            if (up.shape[0], *down.shape[1:]) != delta.shape:
                raise BadInput(
                    f"the LoRA to start from changes a weight of shape {delta.shape} in {name!r}, "
                    f"the checkpoint's is {(up.shape[0], *down.shape[1:])}: it is for another model"
                )
            delta.fill(up, down, alpha / rank)

    def _inject(self, model: Any, paths: Mapping[str, str]) -> None:
        """``paths`` of the modules by the names that they have in the LoRA file."""
        modules = dict(model.named_modules())
        spatial = [path for path in paths.values() if _is_spatial(modules[path])]
        config = LoraConfig(
            r=self._spec.rank,
            lora_alpha=self._spec.alpha,
            target_modules=list(paths.values()),
            rank_pattern=dict.fromkeys(spatial, self._spec.conv_rank),
            alpha_pattern=dict.fromkeys(spatial, self._spec.conv_alpha),
            lora_dropout=0.0,
            bias="none",
        )
        # peft draws its own start, which is replaced below: the global generator stays as it was.
        with torch.random.fork_rng(devices=[]):
            self._tuners.append(LoraModel(model, config, ADAPTER))
        modules = dict(model.named_modules())
        for name, path in paths.items():
            layer = modules[path]
            self._layers[name] = layer
            for factor in _factors(layer):
                factor.to(device=model.device, dtype=torch.float32)
            if _merging_is_cheaper(layer, self._rank_of(layer)[0]):
                layer.forward = partial(_merged_forward, layer)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        for layer in self._layers.values():
            down, up = (factor.weight for factor in _factors(layer))
            # kaiming_uniform_ with a = sqrt(5), which has no generator before torch 2.2.
            bound = 1.0 / math.sqrt(down[0].numel())
            start = torch.empty(down.shape).uniform_(-bound, bound, generator=generator)
            down.copy_(start)
            up.zero_()

    def _scale_of(self, layer: Any) -> float:
        rank, alpha = self._rank_of(layer)
        return alpha / rank

    def _rank_of(self, layer: Any) -> tuple[int, float]:
        spec = self._spec
        if _is_spatial(layer.base_layer):
            return spec.conv_rank, spec.conv_alpha
        return spec.rank, spec.alpha


def trained_paths(model: DiffusionModel, spec: TrainingSpec) -> Mapping[str, Mapping[str, str]]:
    """Part of the model -> the name in the LoRA file of each module that is trained, and its path.

    The order is that of the random start: of SD 1.x kohya's, else the checkpoint's.
    """
    conv, text = spec.conv_rank > 0, spec.text_encoder
    names: Iterable[str]
    if model.family is Family.SD1:
        modules = (*kohya_modules_unet(conv=conv), *(kohya_modules_text() if text else ()))
        names = [module.kohya for module in modules]
    else:
        names = trained_names(model.header, conv=conv, text=text)
    found: dict[str, dict[str, str]] = {}
    for name in names:
        place = model.modules[name]
        found.setdefault(place.part, {})[name] = place.path
    return found


def _merging_is_cheaper(layer: Any, rank: int) -> bool:
    """Whether a step costs less with the delta added to the weight than beside it.

    Multiplications for each position: rank (in + out) for the output, as many for the gradient of the
    input and for that of the factors, against in out for the gradient of the merged weight; what
    passes over the activations besides is left out. Only in float32: added to a half-precision
    weight, small deltas would be lost.
    """
    weight = layer.base_layer.weight
    out, inner = weight.shape[0], weight[0].numel()
    return weight.dtype is torch.float32 and out * inner <= MERGING_FACTOR * rank * (out + inner)


def _merged_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """What peft's layer computes, with weight + scale up down as the only weight; differentiable."""
    base = layer.base_layer
    down, up = (factor.weight for factor in _factors(layer))
    weight = torch.addmm(
        base.weight.flatten(1), up.flatten(1), down.flatten(1), alpha=layer.scaling[ADAPTER]
    ).view(base.weight.shape)
    if isinstance(base, torch.nn.Linear):
        return functional.linear(x, weight, base.bias)
    return functional.conv2d(
        x, weight, base.bias, base.stride, base.padding, base.dilation, base.groups
    )


def lora_metadata(
    spec: TrainingSpec,
    weights: LoraWeights,
    *,
    name: str,
    checkpoint: str,
    family: Family,
    velocity: bool,
    side: tuple[int, int],
    extra: Mapping[str, str],
) -> dict[str, str]:
    """kohya's ``ss_*`` and the ``modelspec.*`` keys of a LoRA, as hosts read them, and ``extra``.

    No times of day and no paths: the same training gives the same file. ``checkpoint`` is the file
    name of the base, of ``family``; ``side`` width and height in pixels.
    """
    values: dict[str, object] = {
        "ss_sd_model_name": checkpoint,
        "ss_max_train_steps": spec.steps,
        "ss_steps": spec.steps,
        "ss_total_batch_size": spec.batch_size,
        "ss_learning_rate": f"{spec.learning_rate:g}",
        "ss_unet_lr": f"{spec.learning_rate:g}",
        "ss_text_encoder_lr": f"{spec.learning_rate:g}" if spec.text_encoder else None,
        "ss_lr_scheduler": spec.schedule.value,
        "ss_lr_warmup_steps": spec.warmup_steps,
        "ss_optimizer": spec.optimiser.value,
        "ss_noise_offset": f"{spec.noise_offset:g}" if spec.noise_offset else None,
        "ss_min_snr_gamma": (
            f"{spec.min_snr_gamma:g}" if spec.loss_weighting is LossWeighting.MIN_SNR else None
        ),
        "ss_debiased_estimation": spec.loss_weighting is LossWeighting.DEBIASED,
        "ss_gradient_checkpointing": spec.gradient_checkpointing,
        "ss_resolution": str(side),
        "ss_seed": spec.seed,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.resolution": f"{side[0]}x{side[1]}",
        "modelspec.prediction_type": "v" if velocity else "epsilon",
    }
    settings = {key: str(value) for key, value in values.items()}
    return {**network_metadata(weights, name=name, family=family, velocity=velocity), **settings, **extra}


def _factors(layer: Any) -> tuple[Any, Any]:
    """The modules of down and up (peft's A and B)."""
    return layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]


def _is_spatial(module: Any) -> bool:
    """Is it a convolution larger than 1x1, whose rank is ``conv_rank``?"""
    return isinstance(module, torch.nn.Conv2d) and module.kernel_size != (1, 1)
