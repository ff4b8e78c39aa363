"""Parts of pages that are made further up: the loss curve of a job, and the report of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from copier.errors import BadInput
from copier.evaluation.charts import Series, line_chart, smoothed, thinned
from copier.markup import Markup

_WINDOW = 25


def loss_chart(losses: Sequence[tuple[int, float]], title: str) -> Markup:
    """The losses of a training as an SVG, faint, with their running mean; empty for fewer than two."""
    points = [(float(step), loss) for step, loss in losses]
    if len(points) < 2:
        return Markup("")
    window = max(3, min(_WINDOW, len(points) // 4))
    means = smoothed([loss for _, loss in points], window)
    mean = tuple((step, value) for (step, _), value in zip(points, means, strict=True))
    return line_chart(
        (Series("loss", thinned(points), "raw"), Series("running mean", thinned(mean), "lora")),
        title=title,
        x_label="step",
    )


def report_page(out: Path) -> str:
    """The report in the folder of a finished run, as a whole page that loads nothing.

    Raises:
        BadInput: there is none any more.
    """
    try:
        return (out / "report.html").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"the report in {out} cannot be read: {error}; run it again to write it anew"
        ) from error
