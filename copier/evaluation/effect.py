"""Effect and leakage of a LoRA at several weights, for an edit f that the program knows.

For a picture x of the base and a weight w the ideal result is

    t(w) = clip(x + w (f(x) - x))

and with y the picture with the LoRA at w, |.| the root mean square over pixels and channels:

    effect     = 1 - |y - t(w)| / |x - t(w)|         1 ideal, 0 none, below 0 the wrong way
    leakage    = |part of (y - x) orthogonal to (t(w) - x)| / |t(w) - x|
    projection = <y - x, t(1) - x> / |t(1) - x|^2    about w, so negative at negative weights
    ceiling    = effect of decode(encode(t(w))) in the place of y

The projection always looks along the axis of weight 1, so that one number runs from below 0 to above
it as the weight goes from -1 to 1; effect, leakage and ceiling look at the ideal of their own weight.
A pair (one prompt and seed) where the ideal changes less than the floor is left out, and counted.

For an edit by hand f is unknown; ``change_strip`` gives what can be said then: how large the change
is, and how consistent from prompt to prompt. That is no effect, and is never called one.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from copier.errors import BadInput
from copier.images import metrics
from copier.images.effects import Picture, Pictures
from copier.images.sizes import by_size

Edit = Callable[[Picture], Picture]
"""An edit f of one picture."""

GOOD_SHARE = 0.8
"""A weight belongs to the suggested range if its effect is at least this share of the best one."""

LEAKAGE_LIMIT = 1.0
"""... and if its leakage is at most this: no more unwanted change than wanted."""


def target(x: Picture, edited: Picture, weight: float) -> Picture:
    """The ideal result at ``weight``: clip(x + weight (edited - x)) to [0, 1], where edited = f(x)."""
    ideal: Picture = np.clip(x + np.float32(weight) * (edited - x), 0.0, 1.0)
    return ideal


def to_pairs(a: Pictures, b: Pictures) -> Edit:
    """The edit that turns every picture into the B of the pair whose A, of its size, is nearest to it.

    With it, and the copier's pictures of A as x, ``effect_strip`` measures a hand edit on A itself.
    """

    def edit(picture: Picture) -> Picture:
        _, place = metrics.nearest(picture, a)
        chosen: Picture = b[place]
        return chosen

    return edit


@dataclass(frozen=True)
class PairFigures:
    """One prompt and seed at one weight; None where the ideal change is below the floor.

    ``wanted`` is |t(w) - x| and ``change`` |y - x|. ``ceiling`` is also None where it was not measured.
    """

    wanted: float
    change: float
    effect: float | None
    leakage: float | None
    projection: float | None
    ceiling: float | None


@dataclass(frozen=True)
class WeightFigures:
    """All pairs at one weight, and their means (None where no pair is left)."""

    weight: float
    pairs: tuple[PairFigures, ...]

    @property
    def effect(self) -> float | None:
        """Mean effect: 1 ideal, 0 none, below 0 the wrong way."""
        return _mean(pair.effect for pair in self.pairs)

    @property
    def leakage(self) -> float | None:
        """Mean leakage: 0 none, 1 as much unwanted change as wanted."""
        return _mean(pair.leakage for pair in self.pairs)

    @property
    def projection(self) -> float | None:
        """Mean projection on the axis of weight 1; ideally about the weight itself."""
        return _mean(pair.projection for pair in self.pairs)

    @property
    def ceiling(self) -> float | None:
        """Mean effect that the autoencoder allows."""
        return _mean(pair.ceiling for pair in self.pairs)

    @property
    def change(self) -> float | None:
        """Mean |y - x|, over all pairs."""
        return _mean(pair.change for pair in self.pairs)

    @property
    def counted(self) -> int:
        """Number of pairs in effect and leakage."""
        return sum(pair.effect is not None for pair in self.pairs)

    @property
    def left_out(self) -> int:
        """Number of pairs left out of effect and leakage, because they have next to nothing to do."""
        return len(self.pairs) - self.counted


@dataclass(frozen=True)
class StripResult:
    """Effect and leakage at every weight of a strip, in rising order of the weight."""

    weights: tuple[WeightFigures, ...]
    floor: float

    def at(self, weight: float) -> WeightFigures | None:
        """The figures at ``weight``, or None if the strip has no such weight."""
        return next((figures for figures in self.weights if figures.weight == weight), None)

    @property
    def best(self) -> WeightFigures | None:
        """The positive weight of the largest mean effect; None where none was measured."""
        measured = [f for f in self.weights if f.weight > 0 and f.effect is not None]
        return max(measured, key=lambda f: f.effect or 0.0, default=None)

    @property
    def suggested(self) -> tuple[float, float] | None:
        """The weights to use, smallest and largest; None where none can be recommended.

        The rule: the neighbours of the best weight, as far as each has at least ``GOOD_SHARE`` of the
        best effect, which must be above 0, and a leakage of at most ``LEAKAGE_LIMIT``.
        """
        best = self.best
        if best is None or best.effect is None or best.effect <= 0:
            return None
        least = GOOD_SHARE * best.effect
        runs: list[list[float]] = [[]]
        for figures in self.weights:
            if (
                figures.weight > 0
                and figures.effect is not None
                and figures.effect >= least
                and (figures.leakage or 0.0) <= LEAKAGE_LIMIT
            ):
                runs[-1].append(figures.weight)
            else:
                runs.append([])
        around = next((run for run in runs if best.weight in run), None)
        return (around[0], around[-1]) if around else None

    @property
    def rises(self) -> bool:
        """Whether the mean projection rises from every weight to the next."""
        return self.smallest_rise is not None and self.smallest_rise > 0

    @property
    def smallest_rise(self) -> float | None:
        """Smallest rise of the mean projection from a weight to the next; None below two weights."""
        known = [f.projection for f in self.weights if f.projection is not None]
        return min((high - low for low, high in itertools.pairwise(known)), default=None)


def effect_strip(
    x: Pictures,
    f: Edit,
    y: Mapping[float, Pictures],
    floor: float,
    *,
    ideals: Mapping[float, Pictures] | None = None,
) -> StripResult:
    """Effect, leakage and projection of a LoRA at several weights.

    Args:
        x: pictures of the base, one for each prompt and seed.
        f: the edit that the LoRA should do.
        y: for every weight the pictures with the LoRA, from the same prompts and seeds.
        floor: pairs with |t - x| below it are left out (effect and leakage look at t of the weight,
            the projection at t(1)).
        ideals: decode(encode(t)) by weight (see ``target``), for the ceiling; weights may be missing.

    Raises:
        BadInput: no pictures or weights, not as many at each, or of other sizes.
    """
    if not len(x) or not y:
        raise BadInput(f"an effect was asked for {len(x)} pictures at {len(y)} weights: give at least one")
    edited = [f(picture) for picture in x]
    axes = [metrics.difference(target(x[i], edited[i], 1.0), x[i]) for i in range(len(x))]
    results = []
    for weight in sorted(y):
        drawn, ceiling = y[weight], (ideals or {}).get(weight)
        for other in (drawn, *([] if ceiling is None else [ceiling])):
            _check_alike(weight, other, x)
        pairs = (
            _pair(
                x[i],
                target(x[i], edited[i], weight),
                drawn[i],
                axes[i],
                floor,
                None if ceiling is None else ceiling[i],
            )
            for i in range(len(x))
        )
        results.append(WeightFigures(weight=float(weight), pairs=tuple(pairs)))
    return StripResult(weights=tuple(results), floor=floor)


def _check_alike(weight: float, pictures: Pictures, base: Pictures) -> None:
    if len(pictures) != len(base):
        raise BadInput(
            f"at weight {weight:g} there are {len(pictures)} pictures, but {len(base)} of the base: draw "
            "both from the same prompts"
        )
    for one, other in zip(pictures, base, strict=True):
        if one.shape != other.shape:
            raise BadInput(
                f"at weight {weight:g} there is a picture of the shape {one.shape}, but that of the base has "
                f"{other.shape}: draw both in one size"
            )


def _pair(
    x: Picture, t: Picture, y: Picture, axis: metrics.Direction, floor: float, ceiling: Picture | None
) -> PairFigures:
    change, wanted = metrics.difference(y, x), metrics.difference(t, x)
    size = metrics.magnitude(wanted)
    clear = size > 0 and size >= floor
    along = metrics.magnitude(axis)
    return PairFigures(
        wanted=size,
        change=metrics.magnitude(change),
        effect=1.0 - metrics.distance(y, t) / size if clear else None,
        leakage=metrics.magnitude(metrics.orthogonal(change, wanted)) / size if clear else None,
        projection=metrics.projection(change, axis) if along > 0 and along >= floor else None,
        ceiling=1.0 - metrics.distance(ceiling, t) / size if clear and ceiling is not None else None,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


@dataclass(frozen=True)
class ChangeFigures:
    """How much a LoRA changes at one weight, and how much alike it does so from prompt to prompt.

    ``magnitudes`` are |y - x| of every prompt and seed. ``consistency`` is the mean cosine of the
    changes of two prompts: 1 where all pictures change in the same pixels in the same way, 0 where the
    changes have nothing in common; None where no two pictures of one size changed at all. Changes of
    pictures of different sizes are not compared.
    """

    weight: float
    magnitudes: tuple[float, ...]
    consistency: float | None

    @property
    def magnitude(self) -> float:
        """Mean |y - x|."""
        return statistics.fmean(self.magnitudes)


@dataclass(frozen=True)
class ChangeResult:
    """The changes at every weight of a strip, in rising order of the weight."""

    weights: tuple[ChangeFigures, ...]

    def at(self, weight: float) -> ChangeFigures | None:
        """The figures at ``weight``, or None if the strip has no such weight."""
        return next((figures for figures in self.weights if figures.weight == weight), None)


def change_strip(x: Pictures, y: Mapping[float, Pictures]) -> ChangeResult:
    """Magnitude and consistency of the change at every weight, where the edit is unknown.

    Args:
        x: pictures of the base.
        y: for every weight the pictures with the LoRA, from the same prompts and seeds.

    Raises:
        BadInput: no pictures or weights, not as many at each, or of other sizes.
    """
    if not len(x) or not y:
        raise BadInput(f"a change was asked for {len(x)} pictures at {len(y)} weights: give at least one")
    results = []
    for weight in sorted(y):
        _check_alike(weight, y[weight], x)
        changes = [metrics.difference(one, base) for one, base in zip(y[weight], x, strict=True)]
        magnitudes = tuple(metrics.magnitude(change) for change in changes)
        results.append(ChangeFigures(float(weight), magnitudes, _consistency(changes)))
    return ChangeResult(weights=tuple(results))


def _consistency(changes: Sequence[metrics.Direction]) -> float | None:
    cosines, pairs = 0.0, 0
    for places in by_size((one.shape[1], one.shape[0]) for one in changes).values():
        flat = np.stack([changes[place].ravel() for place in places])
        lengths = np.linalg.norm(flat, axis=1)
        moved = flat[lengths > 0] / lengths[lengths > 0][:, None]
        count = len(moved)
        # The squared length of the sum of unit vectors holds every pair's cosine twice, and count ones.
        total = moved.sum(axis=0)
        cosines += float(total @ total - count)
        pairs += count * (count - 1)
    return cosines / pairs if pairs else None
