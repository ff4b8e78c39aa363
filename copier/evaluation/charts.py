"""Line charts as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from copier.markup import Content, Markup, join, number, tag

_WIDTH, _HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 12, 12, 30


@dataclass(frozen=True)
class Series:
    """Points of one line; ``style`` is its class in the style sheet. ``dots`` marks every point."""

    label: str
    points: tuple[tuple[float, float], ...]
    style: str
    dots: bool = False


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Centred running mean over ``window`` values, fewer at the ends."""
    half = window // 2
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    means = []
    for i in range(len(values)):
        low, high = max(0, i - half), min(len(values), i + half + 1)
        means.append((sums[high] - sums[low]) / (high - low))
    return means


def thinned(points: Sequence[tuple[float, float]], most: int = 400) -> tuple[tuple[float, float], ...]:
    """At most about ``most`` of the points, evenly spread, the last one among them."""
    stride = max(1, math.ceil(len(points) / most))
    kept = list(points[::stride])
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return tuple(kept)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``.

    They are the multiples of 1, 2 or 5 times a power of ten.
    """
    span = high - low
    if span <= 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 5) if m * power >= rough * 0.999), 10 * power)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    lines: Iterable[float] = (),
) -> Markup:
    """A chart of all ``series``, with a horizontal rule at each of ``lines``.

    ``y_range`` is widened to none of the points: what lies beyond is cut off at the frame. Unless
    given it holds all points and rules.
    """
    lines = tuple(lines)
    points = [point for one in series for point in one.points]
    if not points:
        return Markup("")
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    if 0 < x_low < 0.05 * x_high:
        x_low = 0.0
    if y_range is None:
        values = [y for _, y in points] + list(lines)
        margin = 0.06 * (max(values) - min(values) or 1.0)
        y_range = (min(values) - margin, max(values) + margin)
    frame = _Frame((x_low, x_high if x_high > x_low else x_low + 1), y_range)
    return tag(
        "svg",
        tag("title", title),
        _axes(frame, x_label),
        (_rule(frame, y) for y in lines if y_range[0] <= y <= y_range[1]),
        (_series(frame, one) for one in series),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        class_="chart",
    )


@dataclass(frozen=True)
class _Frame:
    """The mapping of values to the chart's coordinates."""

    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        low, high = self.y
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (min(max(y, low), high) - low) / (high - low)
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 1),
        )


def _axes(frame: _Frame, x_label: str) -> Markup:
    parts: list[Content] = []
    y_ticks = ticks(*frame.y)
    digits = max((len(f"{y:g}".partition(".")[2]) for y in y_ticks), default=0)
    for y in y_ticks:
        _, place = frame.place(frame.x[0], y)
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=place, y2=place, class_="gridline"))
        parts.append(tag("text", number(y, digits), x=_LEFT - 6, y=place + 3.5, text_anchor="end"))
    for x in ticks(*frame.x):
        place, _ = frame.place(x, frame.y[0])
        label = f"{x:g}".replace("-", "−")
        parts.append(tag("text", label, x=place, y=_HEIGHT - _BOTTOM + 14, text_anchor="middle"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(tag("text", x_label, x=middle, y=_HEIGHT - 3, text_anchor="middle", class_="axis"))
    return join(parts)


def _rule(frame: _Frame, y: float) -> Markup:
    _, place = frame.place(frame.x[0], y)
    return tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=place, y2=place, class_="rule")


def _series(frame: _Frame, series: Series) -> Markup:
    places = [frame.place(x, y) for x, y in series.points]
    drawn: list[Content] = [
        tag("polyline", points=" ".join(f"{x:g},{y:g}" for x, y in places), class_=f"line {series.style}")
    ]
    if series.dots:
        for (x, y), (weight, value) in zip(places, series.points, strict=True):
            note = tag("title", f"{series.label}: {number(value)} at {number(weight, 1)}")
            drawn.append(tag("circle", note, cx=x, cy=y, r=3.2, class_=f"dot {series.style}"))
    return join(drawn)
