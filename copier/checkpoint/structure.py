"""What all checkpoints of a family have in common, whatever their widths: the facts that no shape tells.

Sources: the configurations ``v1-inference.yaml`` and ``v2-inference-v.yaml`` of Stability AI's and CompVis's
stable-diffusion, ``sd_xl_base.yaml`` of generative-models; the same numbers in sd-scripts'
``library/model_util.py`` and ``sdxl_model_util.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from copier.checkpoint.family import Family
from copier.checkpoint.names import ATTENTION_LEVELS, LEVELS, TEXT_LAYERS, TEXT_PREFIX
from copier.errors import BadInput

TIME_ID_WIDTH = 256
"""Features that each of SDXL's numbers about the size of a picture becomes."""
TIME_IDS = 6
"""Original size, corner of the crop, and wanted size, each as height and width."""
_KL_F8_SCALE = 0.18215


@dataclass(frozen=True)
class TextStructure:
    """One text encoder: the prefix of its keys, and how it is read.

    Attributes:
        layers: how many there are; the last ``spare`` of them may be missing, for nothing reads them.
        open_clip: it has OpenCLIP's names, its GELU, and 0 after the end of a text; else OpenAI's CLIP.
        skipped: how many of the last layers are left out for the context (at clip skip 1).
        normed: the context passes through the final norm.
        pooled: its projected output at the end mark is read too.
    """

    prefix: str
    layers: int
    open_clip: bool = False
    spare: int = 0
    skipped: int = 0
    normed: bool = True
    pooled: bool = False


@dataclass(frozen=True)
class Structure:
    """One family.

    Attributes:
        title: its name for people.
        depths: transformer blocks of the U-Net in one place, by level from the outermost; the middle is as
            deep as the last level that has any.
        linear: the transformers' ``proj_in`` and ``proj_out`` are linear layers, and attention heads have
            64 channels; else they are 1x1 convolutions, and there are 8 heads.
        latent_scale: latents times this have about unit variance.
        text: the encoders, in the order in which their outputs are joined.
        sized: the U-Net reads the size of the picture, and the pooled output of the last encoder.
        side: of the pictures that it was trained on, in pixels.
    """

    title: str
    depths: tuple[int, ...]
    linear: bool
    latent_scale: float
    text: tuple[TextStructure, ...]
    sized: bool = False
    side: int = 512

    @property
    def levels(self) -> int:
        """Levels of the U-Net."""
        return len(self.depths)

    @property
    def middle_depth(self) -> int:
        """Transformer blocks in the middle of the U-Net."""
        return next(depth for depth in reversed(self.depths) if depth)


def check_clip_skip(structure: Structure, clip_skip: int) -> None:
    """Raise ``BadInput`` unless so many layers of the text encoder can be left out; 1 leaves out none."""
    first = structure.text[0]
    if clip_skip > 1 and first.skipped:
        raise BadInput(
            f"clip skip is {clip_skip}, but {structure.title} has none (it reads its text encoders before "
            "the last layer as it is): set it to 1"
        )
    if not 1 <= clip_skip <= first.layers:
        raise BadInput(f"clip skip is {clip_skip}: it must be 1 to {first.layers}")


_DEPTHS = tuple(int(level in ATTENTION_LEVELS) for level in range(LEVELS))

STRUCTURES: Mapping[Family, Structure] = MappingProxyType(
    {
        Family.SD1: Structure(
            "Stable Diffusion 1.x",
            _DEPTHS,
            linear=False,
            latent_scale=_KL_F8_SCALE,
            text=(TextStructure(TEXT_PREFIX, TEXT_LAYERS),),
        ),
        Family.SD2: Structure(
            "Stable Diffusion 2.x",
            _DEPTHS,
            linear=True,
            latent_scale=_KL_F8_SCALE,
            text=(TextStructure("cond_stage_model.model.", 24, open_clip=True, spare=1, skipped=1),),
        ),
        Family.SDXL: Structure(
            "SDXL",
            (0, 2, 10),
            linear=True,
            latent_scale=0.13025,
            text=(
                TextStructure("conditioner.embedders.0.transformer.", 12, skipped=1, normed=False),
                TextStructure(
                    "conditioner.embedders.1.model.",
                    32,
                    open_clip=True,
                    skipped=1,
                    normed=False,
                    pooled=True,
                ),
            ),
            sized=True,
            side=1024,
        ),
    }
)
"""The families whose checkpoints can be loaded."""
