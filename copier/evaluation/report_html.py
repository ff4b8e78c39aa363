"""``report.html``: one page that holds everything, pictures and charts included, and loads nothing.

The text of the page is here, what it says of one LoRA in ``html_result``; its looks are in report.css,
its frame in report.html. Whatever enters the page goes through ``markup.tag``, which escapes it.
"""

from __future__ import annotations

import math
from pathlib import Path
from string import Template

from copier.evaluation.effect import GOOD_SHARE, LEAKAGE_LIMIT, ChangeResult, StripResult
from copier.evaluation.html_parts import (
    LARGE,
    SMALL,
    check_list,
    chip,
    described,
    loss_charts,
    picture_tag,
    table,
    tile,
    tiles,
)
from copier.evaluation.html_result import result_id, result_section
from copier.evaluation.report_data import GateReport, ReportData, Result, StageStatus
from copier.images.pairs import difference_image, difference_map
from copier.images.sheet import as_image
from copier.markup import Content, Markup, duration, join, number, tag

_FOLDER = Path(__file__).parent


def report_html(data: ReportData) -> str:
    """The whole page."""
    body = tag(
        "main",
        _header(data),
        _pairs(data),
        _gate(data.gate) if data.gate else None,
        (result_section(result) for result in data.results),
        _making(data),
        _glossary(data),
        tag("footer", data.program and f"Made by {data.program}."),
    )
    frame = Template((_FOLDER / "report.html").read_text(encoding="utf-8"))
    style = (_FOLDER / "report.css").read_text(encoding="utf-8")
    return frame.substitute(title=join(data.title), style=style, body=body)


def _header(data: ReportData) -> Markup:
    facts = " · ".join(fact for fact in (data.recipe, data.checkpoint, data.created) if fact)
    links: list[Content] = [tag("a", "Is it A every time?", href="#gate")] if data.gate else []
    links += [tag("a", result.title, href=f"#{result_id(result)}") for result in data.results]
    links += [tag("a", "What the figures mean", href="#words")]
    return tag(
        "header",
        tag("p", facts, class_="facts"),
        tag("h1", data.title),
        tag("p", data.summary, class_="lead"),
        tag("nav", links),
        check_list(data.checks),
    )


def _pairs(data: ReportData) -> Markup:
    return tag(
        "section",
        tag("div", tag("h2", "The pair" if len(data.results) == 1 else "The pairs"), class_="head"),
        tag(
            "div",
            (_pair(data, result) for result in data.results),
            class_="pairs many" if len(data.results) > 1 else "pairs",
        ),
    )


def _pair(data: ReportData, result: Result) -> Markup:
    found = difference_map(as_image(data.a), as_image(result.b))
    prompt = f"“{data.a_prompt}”" if data.a_prompt else "the original"
    changed = f"{100 * found.changed:.0f} % of the pixels changed; black is unchanged"
    cells = (
        ("", data.a, "A", prompt, "A, the original"),
        ("", result.b, "B", result.title, f"B: {result.title}"),
        ("map", difference_image(found), "What differs", changed, "map of the difference"),
    )
    figures = [
        tag(
            "figure",
            picture_tag(picture, text, LARGE, lossless=True),
            tag("figcaption", tag("b", name), caption),
            class_=class_ or None,
        )
        for class_, picture, name, caption, text in cells
    ]
    arrow = tag("div", "→", class_="arrow", aria_hidden="true")
    return tag(
        "div",
        tag("div", figures[0], arrow, figures[1:], class_="pair"),
        (tag("p", warning, class_="warning") for warning in found.warnings),
    )


def _gate(gate: GateReport) -> Markup:
    result, spec = gate.result, gate.spec
    count = len(result.distances)
    needed = math.ceil(spec.share * count)
    passed = result.passed(spec)
    return tag(
        "section",
        tag(
            "div",
            tag("h2", "Is it A every time?"),
            chip("gate passed" if passed else "gate not passed", good=passed),
            None if result.enough else tag("span", f"only {count} pictures", class_="chip plain"),
            class_="head",
        ),
        tag(
            "p",
            "Large: what checkpoint and copier draw. Small, above: what the checkpoint alone draws from the "
            "same prompt and seed. Training saw none of these prompts. A distance of 0 is A itself, as "
            "well as the autoencoder can show it; 1 is as far away as without the copier.",
        ),
        tiles(
            tile("Median distance", number(result.median), "", f"at most {number(spec.median_limit)}"),
            tile(
                f"Pictures within {number(spec.single_limit)}",
                f"{result.within(spec.single_limit)} of {count}",
                "",
                f"at least {needed}",
            ),
            tile("Farthest picture", number(max(result.distances)), "", "a single miss shows here"),
        ),
        (_gate_row(gate, guidance) for guidance in sorted({draw.guidance for draw in gate.draws})),
        id="gate",
    )


def _gate_row(gate: GateReport, guidance: float) -> Markup:
    cells = []
    for i, draw in enumerate(gate.draws):
        if draw.guidance != guidance:
            continue
        distance = gate.result.distances[i]
        text = described(draw)
        cells.append(
            tag(
                "figure",
                picture_tag(gate.base[i], f"without the copier: {text}", SMALL // 2, class_="without"),
                picture_tag(gate.pictures[i], f"with the copier: {text}", class_="with"),
                tag("figcaption", number(distance)),
                class_="far" if distance > gate.spec.single_limit else None,
            )
        )
    heading = f"With guidance (CFG {guidance:g})" if guidance > 1 else "Without guidance"
    return join((tag("h3", heading), tag("div", cells, class_="gate")))


def _making(data: ReportData) -> Markup:
    parts: list[Content] = [loss_charts(data.losses)]
    if data.stages:
        head = (
            tag("th", name, class_="text" if name in ("Kind", "Why") else None)
            for name in ("Stage", "Kind", "", "Time", "Why")
        )
        rows = (
            tag(
                "tr",
                tag("td", tag("code", stage.name)),
                tag("td", stage.kind),
                tag("td", tag("span", stage.status.value, class_=f"chip {_STATUS[stage.status]}")),
                tag("td", duration(stage.seconds)),
                tag("td", stage.reason, class_="text"),
            )
            for stage in data.stages
        )
        parts += [tag("h3", "Stages"), table(head, rows)]
    if data.seconds is not None:
        parts.append(tag("p", f"The whole run took {duration(data.seconds)}.", class_="small"))
    parts += [tag("p", note, class_="small") for note in data.notes]
    if not join(parts):
        return Markup("")
    return tag("section", tag("div", tag("h2", "How it was made"), class_="head"), parts)


_STATUS = {StageStatus.RUN: "good", StageStatus.REUSED: "plain"}


_GATE_WORDS = (
    (
        "Gate",
        "Distance of the copier's pictures to A, over the median distance of the checkpoint's own pictures. "
        "0: always A. 1: no copier at all. Half of the pictures are drawn with guidance.",
    ),
)
_EFFECT_WORDS = (
    (
        "Effect",
        "How much nearer a picture came to the ideal edit. 1: it is the ideal. 0: no nearer than the "
        "untouched picture. Below 0: farther away than before.",
    ),
    (
        "Leakage",
        "Change that the edit does not ask for, in units of the edit. 0: none. 1: as much unwanted change "
        "as wanted.",
    ),
    (
        "Projection",
        "How far the picture moved in the direction of the edit at +1. It should follow the weight: 1 at "
        "+1, and −1 at −1, where the picture moves away from the edit.",
    ),
    (
        "Ceiling",
        "The effect of a perfect LoRA: no picture of this checkpoint can be better than its autoencoder "
        "shows it.",
    ),
    (
        "Good weights",
        f"The weights next to the best one, as long as their effect is at least {100 * GOOD_SHARE:.0f} % of "
        f"the best and their leakage at most {LEAKAGE_LIMIT:g}.",
    ),
)
_CHANGE_WORDS = (
    ("Change", "Distance of the pictures with and without the LoRA."),
    (
        "Consistency",
        "Mean cosine of the changes of two prompts. 1: the same change everywhere. 0: the changes have "
        "nothing in common.",
    ),
)
_CONTROL_WORDS = (
    (
        "Plain LoRA",
        "The control: a LoRA trained on B alone, without a copier, with the same steps, rate and rank. What "
        "one would train otherwise.",
    ),
)
_DISTANCE_WORDS = (
    (
        "Distance",
        "Root mean square of the differences over all pixels and colours: 0 for equal pictures, 1 from black "
        "to white.",
    ),
)


def _glossary(data: ReportData) -> Markup:
    figures = [result.strip.figures for result in data.results]
    words = (
        *(_GATE_WORDS if data.gate else ()),
        *(_EFFECT_WORDS if any(isinstance(one, StripResult) for one in figures) else ()),
        *(_CHANGE_WORDS if any(isinstance(one, ChangeResult) for one in figures) else ()),
        *(_CONTROL_WORDS if any(result.control for result in data.results) else ()),
        *_DISTANCE_WORDS,
    )
    terms = ((tag("dt", word), tag("dd", meaning)) for word, meaning in words)
    return tag(
        "section",
        tag("div", tag("h2", "What the figures mean"), class_="head"),
        tag("dl", terms),
        id="words",
    )
