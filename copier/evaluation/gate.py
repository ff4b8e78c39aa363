"""The copier gate: does the copier draw A every time, whatever the prompt?

Pictures are float arrays (height, width, 3), sRGB values in [0, 1]; where they are several, each may have a
size of its own. Distances are root mean squares over pixels and channels (``copier.images.metrics``).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from copier.errors import BadInput
from copier.images import metrics
from copier.images.effects import Pictures
from copier.recipe import GateStage

ENOUGH = 16
"""Prompt and seed pairs that a verdict needs at least."""


@dataclass(frozen=True)
class GateResult:
    """How near the copier's pictures come to A: 0 is a perfect copier, 1 is none.

    Attributes:
        distances: of every picture with the copier to the ideal, over ``base_median``.
        base: the same for the base's own pictures; their median is 1.
        base_median: median distance of the base's pictures to the ideal, in [0, 1], not divided.
    """

    distances: tuple[float, ...]
    base: tuple[float, ...]
    base_median: float

    @property
    def median(self) -> float:
        """Median of the distances."""
        return statistics.median(self.distances)

    @property
    def enough(self) -> bool:
        """Whether there are pictures enough (``ENOUGH``) for a verdict."""
        return len(self.distances) >= ENOUGH

    def within(self, single_limit: float) -> int:
        """Number of pictures whose distance is at most ``single_limit``."""
        return sum(distance <= single_limit for distance in self.distances)

    def passed(self, spec: GateStage) -> bool:
        """Whether the median and the share of single pictures keep the limits of ``spec``."""
        near = self.within(spec.single_limit) >= spec.share * len(self.distances)
        return near and self.median <= spec.median_limit


def worse(median: float, limit: float, *, passed: bool) -> tuple[bool, float]:
    """Orders gates, the worst last: those that failed, then by the median in units of its limit."""
    return not passed, median / max(limit, 1e-6)


def gate(copier_images: Pictures, base_images: Pictures, ideals: Pictures) -> GateResult:
    """Distance of base + copier's pictures to A, in units of the base's own.

    distance_i = |copier_i - ideal| / median_j |base_j - ideal|

    where the originals are several, ideal is always the nearest one of the picture's size.

    Args:
        copier_images: drawn by the checkpoint with the copier LoRA.
        base_images: drawn by the checkpoint alone, from the same prompts and seeds.
        ideals: decode(encode(A)) of every original: as near to them as the autoencoder allows.

    Raises:
        BadInput: no pictures, not as many of each, a size that no original has, or a base that draws the
            ideal all by itself, so that there is nothing to measure by.
    """
    if not len(copier_images) or len(copier_images) != len(base_images):
        raise BadInput(
            f"the gate got {len(copier_images)} pictures of the copier and {len(base_images)} of the "
            "base: give as many of each, at least one"
        )
    base = [distance for distance, _ in _nearest(base_images, ideals)]
    median = statistics.median(base)
    if median == 0.0:
        raise BadInput("the base draws A by itself: a gate cannot be measured; choose another original")
    return GateResult(
        distances=tuple(distance / median for distance, _ in _nearest(copier_images, ideals)),
        base=tuple(distance / median for distance in base),
        base_median=median,
    )


def _nearest(images: Pictures, ideals: Pictures) -> list[tuple[float, int]]:
    return [metrics.nearest(image, ideals) for image in images]


@dataclass(frozen=True)
class ClosenessResult:
    """How near the second training's pictures come to B: 0 is B itself, 1 as far as A is.

    Attributes:
        distances: of every picture to the ideal, over the distance of A to B.
        pair_distance: distance of A to B, in [0, 1]; of several pairs the mean.
    """

    distances: tuple[float, ...]
    pair_distance: float

    @property
    def median(self) -> float:
        """Median of the distances."""
        return statistics.median(self.distances)


def closeness(images: Pictures, ideals: Pictures, a: Pictures, b: Pictures) -> ClosenessResult:
    """Distance of ``images`` to decode(encode(B)), in units of the distance of A to B.

    distance_i = |image_i - ideal| / |A - B|

    where the pairs are several, ideal is the nearest one of the picture's size, and A and B are its pair.

    Args:
        images: drawn by the checkpoint with the copier and the second training's LoRA.
        ideals: decode(encode(B)) of every pair.
        a, b: the pairs themselves, in the same order.

    Raises:
        BadInput: no pictures, a size that no pair has, or A and B are equal.
    """
    if not len(images):
        raise BadInput("the closeness to B was asked for no pictures: give at least one")
    apart = [metrics.distance(*pair) for pair in zip(a, b, strict=True)]
    if 0.0 in apart:
        raise BadInput("A and B are identical: there is no distance to measure by; edit B")
    return ClosenessResult(
        distances=tuple(distance / apart[pair] for distance, pair in _nearest(images, ideals)),
        pair_distance=statistics.fmean(apart),
    )
