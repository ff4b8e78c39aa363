"""The parts that the page and its results share: pictures, tiles, tables, charts of losses."""

from __future__ import annotations

from collections.abc import Iterable

from copier.evaluation.charts import Series, line_chart, smoothed, thinned
from copier.evaluation.data_uri import data_uri
from copier.evaluation.report_data import Check, Draw, LossCurve
from copier.images.sheet import AnyPicture, as_image
from copier.markup import Content, Markup, join, number, tag

LARGE = 512
SMALL = 192
"""Longer side of pictures shown alone and in a grid, in pixels; larger ones are scaled down."""


def picture_tag(
    picture: AnyPicture, text: str, size: int = SMALL, *, lossless: bool = False, class_: str | None = None
) -> Markup:
    """``picture`` as an embedded image of at most ``size`` pixels a side; ``text`` says what it shows."""
    image = as_image(picture)
    scale = min(1.0, size / max(image.size))
    return tag(
        "img",
        src=data_uri(image, size, lossless=lossless),
        alt=text,
        title=text,
        width=round(image.width * scale),
        height=round(image.height * scale),
        class_=class_,
    )


def described(draw: Draw) -> str:
    """Prompt and seed of ``draw``."""
    return f"{draw.prompt or 'the empty prompt'}, seed {draw.seed}"


def chip(text: str, *, good: bool) -> Markup:
    """A verdict in a word or two."""
    return tag("span", f"{'✓' if good else '✗'} {text}", class_=f"chip {'good' if good else 'bad'}")


def tile(name: str, value: str, beside: str, hint: str) -> Markup:
    """One large figure, the control's beneath it (or ""), and how to read it."""
    return tag(
        "div",
        tag("div", name, class_="name"),
        tag("div", value, class_="value"),
        tag("div", beside, class_="beside") if beside else None,
        tag("div", hint, class_="hint") if hint else None,
        class_="tile",
    )


def chart_key(*entries: tuple[str, str]) -> Markup:
    """The key to the lines of charts: (style, name) of each."""
    return tag("div", (tag("span", tag("i"), name, class_=kind) for kind, name in entries), class_="key")


def chart(title: str, hint: str, svg: Markup) -> Markup:
    """A chart in its card."""
    return tag("figure", tag("figcaption", title, tag("span", f" {hint}") if hint else None), svg)


def tiles(*all_tiles: Markup) -> Markup:
    """Tiles side by side."""
    return tag("div", all_tiles, class_="tiles", style=f"--n:{len(all_tiles)}")


def table(head: Iterable[Content], rows: Iterable[Content], *, above: Iterable[Content] = ()) -> Markup:
    """A table that scrolls by itself where the page is too narrow; ``above`` is a first row of headings."""
    groups = join(above)
    heads = (tag("tr", groups) if groups else None, tag("tr", head))
    whole = tag("table", tag("thead", heads), tag("tbody", rows))
    return tag("div", whole, class_="scroll")


def loss_charts(curves: tuple[LossCurve, ...]) -> Markup:
    """A chart for each training, or nothing."""
    if not curves:
        return Markup("")
    charts = (
        chart(curve.label, f"{curve.steps[-1]:,} steps", _loss_chart(curve))
        for curve in curves
        if curve.steps
    )
    return join((tag("h3", "Loss of the trainings"), tag("div", charts, class_="charts")))


def _loss_chart(curve: LossCurve) -> Markup:
    smooth = smoothed(curve.losses, max(3, len(curve.losses) // 20))
    # Single steps reach far up: what matters is where the mean goes.
    top = max(1.3 * max(smooth), 1e-6)
    raw = thinned(tuple(zip(map(float, curve.steps), curve.losses, strict=True)))
    mean = thinned(tuple(zip(map(float, curve.steps), smooth, strict=True)))
    return line_chart(
        [Series("each step", raw, "raw"), Series("running mean", mean, "lora")],
        title=f"loss: {curve.label}",
        x_label="step",
        y_range=(0.0, top),
    )


def check_list(checks: tuple[Check, ...]) -> Markup:
    """What was to be kept, and whether it was; or nothing."""
    if not checks:
        return Markup("")
    items = (
        tag(
            "li",
            tag("b", "✓" if check.passed else "✗", class_="yes" if check.passed else "no"),
            f"{check.label}: {number(check.value)} "
            f"({check.relation} {number(check.limit)})",
        )
        for check in checks
    )
    return tag("ul", items, class_="checks")
