"""Plain text for people: tables, numbers, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_KEY_SHOWN = 12


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Left-aligned columns, two spaces apart; the last column is as wide as it is."""
    lines = [tuple(header), *map(tuple, rows)] if header else list(map(tuple, rows))
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def number(value: float | None) -> str:
    """Two decimals, as in ``0.14`` or ``-1.2``; ``-`` for a missing one."""
    if value is None:
        return "-"
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def size(count: int) -> str:
    """Bytes as ``12.3 MB``."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def stage_table(stages: Sequence[Mapping[str, Any]]) -> str:
    """Stages with their key and what becomes of them."""
    rows = [
        (one["name"], one["kind"], one["key"][:_KEY_SHOWN], one["status"], one["reason"]) for one in stages
    ]
    return table(rows, ("stage", "kind", "key", "", "why"))
