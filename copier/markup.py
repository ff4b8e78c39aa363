"""HTML and SVG elements as text, escaped by construction."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Markup(str):
    """Text that is HTML already; every other text is escaped where it enters an element."""

    __slots__ = ()


Content = str | float | None | Iterable["Content"]
"""What an element may hold: texts, numbers, elements, nothing, and lists of these."""

_VOID = {"img", "br", "meta", "hr", "wbr", "input"}


def join(content: Content) -> Markup:
    """``content`` as HTML, one after the other."""
    if content is None:
        return Markup("")
    if isinstance(content, Markup):
        return content
    if isinstance(content, (str, int, float)):
        return Markup(html.escape(str(content), quote=True))
    return Markup("".join(join(part) for part in content))


def tag(name: str, *content: Content, **attributes: str | float | None) -> Markup:
    """The element ``name``; attributes that are None are left out.

    ``class_`` and ``for_`` lose their underscore; other underscores become hyphens, so that
    ``stroke_width`` is SVG's ``stroke-width``.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{join(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(content)}</{name}>")


def number(value: float | None, digits: int = 2) -> str:
    """``value`` rounded, with a real minus sign; a dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def weight_text(weight: float) -> str:
    """A LoRA weight with its sign: +1, −0.5, 0."""
    return f"{weight:+g}".replace("-", "−") if weight else "0"


def duration(seconds: float) -> str:
    """``seconds`` as a person says it: 0.4 s, 12 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
