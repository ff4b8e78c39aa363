"""Distances between pictures, and the parts of a change along and across a direction.

Pictures are arrays (height, width, 3), stacks (n, height, width, 3), sRGB values in [0, 1]. All sums
are taken in float64: a picture has so many values that float32 would lose digits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from copier.errors import BadInput
from copier.images.effects import Picture, Pictures
from copier.images.sizes import by_size, size_of, sizes_text

Direction = npt.NDArray[np.float64]
"""A difference of two pictures, or a part of one."""


def difference(first: Picture, second: Picture) -> Direction:
    """``first`` - ``second`` in float64.

    Raises:
        BadInput: the two have different shapes (nothing is broadcast).
    """
    if first.shape != second.shape:
        raise BadInput(
            f"pictures of the shapes {first.shape} and {second.shape} cannot be compared: "
            "give two of the same size"
        )
    return first.astype(np.float64) - second.astype(np.float64)


def magnitude(change: Direction) -> float:
    """Root mean square of all values of ``change``: sqrt(mean(change^2))."""
    return float(np.sqrt(np.mean(np.square(change, dtype=np.float64))))


def distance(first: Picture, second: Picture) -> float:
    """Distance of two pictures: root mean square of their difference over pixels and channels.

    0 means equal, 1 is that of black and white. It is the measure that the whole program uses.

    Raises:
        BadInput: the two have different shapes.
    """
    return magnitude(difference(first, second))


def nearest(picture: Picture, others: Pictures) -> tuple[float, int]:
    """The distance to the nearest one of ``others`` that has the picture's size, and its place, from 0.

    Raises:
        BadInput: none of them has its size.
    """
    size = size_of(picture)
    places = by_size(map(size_of, others))
    if size not in places:
        raise BadInput(
            f"a picture of {size[0]} x {size[1]} px was drawn, but the pictures that it is compared with "
            f"are {sizes_text(places)}: draw in the same size"
        )
    return min((distance(others[place], picture), place) for place in places[size])


def psnr(first: Picture, second: Picture) -> float:
    """Peak signal-to-noise ratio, -20 log10(distance), in dB; infinite for equal pictures."""
    apart = distance(first, second)
    return float("inf") if apart == 0.0 else float(-20.0 * np.log10(apart))


def projection(change: Direction, axis: Direction) -> float:
    """Length of ``change`` along ``axis`` in units of ``axis``: <change, axis> / |axis|^2.

    1 where ``change`` equals ``axis``, 0 where it is orthogonal to it.

    Raises:
        BadInput: ``axis`` is zero, so it has no direction.
    """
    square = float(np.vdot(axis, axis))
    if square == 0.0:
        raise BadInput("there is no direction to project on: the two pictures that span it are equal")
    return float(np.vdot(change, axis)) / square


def orthogonal(change: Direction, axis: Direction) -> Direction:
    """The part of ``change`` that is orthogonal to ``axis``: change - projection * axis."""
    return change - projection(change, axis) * axis
