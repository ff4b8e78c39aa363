"""The part of the page on one LoRA: figures, strips, charts and tables, beside the control's."""

from __future__ import annotations

from collections.abc import Sequence

from copier.evaluation.charts import Series, line_chart
from copier.evaluation.effect import ChangeResult, StripResult
from copier.evaluation.html_parts import (
    chart,
    chart_key,
    check_list,
    chip,
    described,
    loss_charts,
    picture_tag,
    table,
    tile,
    tiles,
)
from copier.evaluation.report_data import ClosenessReport, Figures, Result, SeedTable, Strip
from copier.images.sheet import AnyPicture
from copier.markup import Content, Markup, join, number, tag, weight_text

_SHOWN = 4
# Prompts that are open at once; the others unfold.


def result_id(result: Result) -> str:
    """The anchor of the result's section."""
    return f"result-{result.name}"


def result_section(result: Result) -> Markup:
    """Everything about one LoRA: verdict, figures, strips, charts, tables."""
    figures = result.strip.figures
    control = result.control.figures if result.control else None
    parts: list[Content] = [
        tag("div", tag("h2", result.title), class_="head"),
        tag("p", result.explanation) if result.explanation else None,
    ]
    if isinstance(figures, StripResult):
        theirs = control if isinstance(control, StripResult) else None
        parts += [_verdict(figures, theirs), _effect_tiles(figures, theirs)]
    else:
        parts.append(_change_tiles(figures, control if isinstance(control, ChangeResult) else None))
    parts += [check_list(result.checks), _strips(result), _weights(result)]
    if result.on_original is not None:
        parts.append(_on_original(result.on_original))
    if result.seeds is not None:
        parts.append(_seeds(result.seeds))
    if result.closeness is not None:
        parts.append(_closeness(result.closeness))
    parts.append(loss_charts(result.losses))
    if result.files:
        files = join([tag("code", name), " "] for name in result.files)
        parts.append(tag("p", "Files: ", files, class_="small"))
    return tag("section", parts, id=result_id(result))


def _verdict(figures: StripResult, control: StripResult | None) -> Markup:
    one = figures.at(1.0)
    sentences = []
    if one is not None and one.effect is not None:
        text = f"At weight 1 the LoRA has effect {number(one.effect)} and leakage {number(one.leakage)}"
        other = control.at(1.0) if control else None
        if other is not None and other.effect is not None:
            text += (
                f"; a plain LoRA trained on B has effect {number(other.effect)} and leakage "
                f"{number(other.leakage)}"
            )
        sentences.append(text + ".")
    best, suggested = figures.best, figures.suggested
    if suggested is not None and suggested[0] < suggested[1]:
        sentences.append(f"Good weights are {suggested[0]:g} to {suggested[1]:g}.")
    elif suggested is not None:
        sentences.append(f"A good weight is {suggested[0]:g}.")
    elif best is not None and (best.effect or 0.0) <= 0:
        sentences.append("At no weight are the pictures nearer to the ideal than without the LoRA.")
    elif best is not None:
        sentences.append("At its best weight it still changes more that is not wanted than what is.")
    return tag("p", " ".join(sentences))


def _beside(control: StripResult | None, weight: float, name: str) -> str:
    one = control.at(weight) if control else None
    return "" if one is None else f"plain LoRA {number(getattr(one, name))}"


def _effect_tiles(figures: StripResult, control: StripResult | None) -> Markup:
    found: list[Markup] = []
    one = figures.at(1.0)
    if one is not None:
        ceiling = f", {number(one.ceiling)} is possible" if one.ceiling is not None else ""
        found += [
            tile(
                "Effect at +1", number(one.effect), _beside(control, 1.0, "effect"), f"1 is ideal{ceiling}"
            ),
            tile("Leakage at +1", number(one.leakage), _beside(control, 1.0, "leakage"), "0 is ideal"),
        ]
    for weight in (1.0, -1.0):
        at = figures.at(weight)
        if at is not None:
            hint = f"{weight_text(weight)} is ideal"
            name = f"Projection at {weight_text(weight)}"
            found.append(tile(name, number(at.projection), _beside(control, weight, "projection"), hint))
    best = figures.best
    if best is not None:
        beside = ""
        if control is not None and control.best is not None:
            beside = f"plain LoRA {number(control.best.effect)} at {weight_text(control.best.weight)}"
        hint = f"at weight {weight_text(best.weight)}"
        found.append(tile("Best effect", number(best.effect), beside, hint))
    return tiles(*found)


def _change_tiles(figures: ChangeResult, control: ChangeResult | None) -> Markup:
    one, other = figures.at(1.0), control.at(1.0) if control else None
    if one is None:
        return Markup("")
    beside = ("", "")
    if other is not None:
        beside = (f"plain LoRA {number(other.magnitude)}", f"plain LoRA {number(other.consistency)}")
    return join(
        (
            tag(
                "p",
                "This edit was made by hand, so nobody knows what it ideally does to other pictures: what "
                "can be told is how much the LoRA changes, and how much alike from prompt to prompt.",
            ),
            tiles(
                tile("Change at +1", number(one.magnitude), beside[0], "0 is none, 1 black to white"),
                tile("Consistency at +1", number(one.consistency), beside[1], "1 is the same everywhere"),
            ),
        )
    )


def _strips(result: Result) -> Markup:
    draws = [_draw(result, i) for i in range(len(result.draws))]
    note = "The edit at full strength is shown as “ideal”." if result.ideals is not None else ""
    text = f"Each row is one prompt and seed that no training saw; each column one weight. {note}"
    more: Content = None
    if len(draws) > _SHOWN:
        label = f"The other {len(draws) - _SHOWN} prompts"
        more = tag("details", tag("summary", label), draws[_SHOWN:])
    return join((tag("h3", "From weight to weight"), tag("p", text, class_="small"), draws[:_SHOWN], more))


def _draw(result: Result, i: int) -> Markup:
    draw = result.draws[i]
    prompt = f"“{draw.prompt}”" if draw.prompt else "the empty prompt"
    strips = [("lora", result.strip, _cells(result, result.strip, i))]
    if result.ideals is not None:
        strips[0][2].append(("ideal", result.ideals[i], "the ideal edit"))
    if result.control is not None:
        strips.append(("control", result.control, _cells(result, result.control, i)))
    # As many columns in both: on a phone, where one lies above the other, the weights stay aligned.
    columns = max(len(cells) for _, _, cells in strips)
    drawn = (
        tag(
            "div",
            tag("span", strip.label, class_=f"who {kind}"),
            tag("div", (_figure(kind, *cell) for cell in cells), class_="strip", style=f"--n:{columns}"),
        )
        for kind, strip, cells in strips
    )
    return tag(
        "div",
        tag("p", prompt, tag("span", f" · seed {draw.seed}"), class_="prompt"),
        tag("div", drawn, class_="strips two" if len(strips) > 1 else "strips"),
        class_="draw",
    )


_Cell = tuple[str, AnyPicture, str]
# Caption, picture, and what it shows.


def _cells(result: Result, strip: Strip, i: int) -> list[_Cell]:
    cells: list[_Cell] = [
        (weight_text(weight), stack[i], f"{strip.label} at {weight_text(weight)}")
        for weight, stack in sorted(strip.pictures.items())
    ]
    if 0.0 not in strip.pictures:
        place = sum(weight < 0 for weight in strip.pictures)
        cells.insert(place, ("base", result.base[i], "the checkpoint alone"))
    return cells


def _figure(kind: str, caption: str, picture: AnyPicture, text: str) -> Markup:
    marked = f"one {kind}" if caption == "+1" else None
    return tag("figure", picture_tag(picture, text), tag("figcaption", caption), class_=marked)


def _weights(result: Result) -> Markup:
    strips = [("lora", result.strip)] + ([("control", result.control)] if result.control else [])
    known = [(kind, s, s.figures) for kind, s in strips if isinstance(s.figures, StripResult)]
    parts: list[Content] = [tag("h3", "The figures at every weight")]
    if known:
        parts.append(_effect_charts(known))
        parts.append(_effect_table(known))
        left_out = max((one.left_out for one in known[0][2].weights), default=0)
        if left_out:
            text = (
                f"Up to {left_out} of {len(result.draws)} pictures are left out of a mean: there the ideal "
                f"change is below {number(known[0][2].floor, 3)}, so there is next to nothing to do."
            )
            parts.append(tag("p", text, class_="small"))
    else:
        changes = [(k, s, s.figures) for k, s in strips if isinstance(s.figures, ChangeResult)]
        parts.append(_change_table(changes))
    return join(parts)


def _effect_charts(known: list[tuple[str, Strip, StripResult]]) -> Markup:
    def series(name: str) -> list[Series]:
        lines = []
        for kind, strip, figures in known:
            points = [(one.weight, getattr(one, name)) for one in figures.weights]
            measured = tuple((weight, value) for weight, value in points if value is not None)
            lines.append(Series(strip.label, measured, kind, dots=True))
        return lines

    ours = known[0][2]
    ceiling = tuple((one.weight, one.ceiling) for one in ours.weights if one.ceiling is not None)
    weights = [one.weight for one in ours.weights]
    straight = tuple((weight, weight) for weight in weights)
    over = "LoRA weight"
    ceilings = [Series("ceiling", ceiling, "ceiling")] if ceiling else []
    key = [(kind, strip.label) for kind, strip, _ in known]
    key += [("ceiling", "ideal, or what the autoencoder allows")]
    charts = (
        chart("Effect", "1 ideal, 0 none", line_chart(
            [*ceilings, *series("effect")], title="effect by weight", x_label=over, lines=(0, 1))),
        chart("Leakage", "0 ideal", line_chart(
            series("leakage"), title="leakage by weight", x_label=over, lines=(0, 1))),
        chart("Projection", "follows the weight", line_chart(
            [Series("ideal", straight, "ideal"), *series("projection")],
            title="projection by weight", x_label=over, lines=(0,))),
    )  # fmt: skip
    return join((tag("div", charts, class_="charts"), chart_key(*key)))


def _effect_table(known: list[tuple[str, Strip, StripResult]]) -> Markup:
    rows = []
    for one in known[0][2].weights:
        others = [(kind, figures.at(one.weight)) for kind, _, figures in known]
        cells: list[Content] = [tag("td", weight_text(one.weight))]
        for name in ("effect", "leakage", "projection"):
            values = [(kind, getattr(at, name) if at else None) for kind, at in others]
            cells += _cells_of(values)
        cells += [tag("td", number(one.ceiling), class_="first")]
        cells += [tag("td", f"{one.counted} of {len(one.pairs)}")]
        rows.append(tag("tr", cells, class_="one" if one.weight == 1 else None))
    return _compared(("Effect", "Leakage", "Projection"), known, rows, ("Ceiling", "Pictures"))


def _change_table(known: list[tuple[str, Strip, ChangeResult]]) -> Markup:
    rows = []
    for one in known[0][2].weights:
        others = [(kind, figures.at(one.weight)) for kind, _, figures in known]
        cells: list[Content] = [tag("td", weight_text(one.weight))]
        for name in ("magnitude", "consistency"):
            values = [(kind, getattr(at, name) if at else None) for kind, at in others]
            cells += _cells_of(values, digits=3)
        rows.append(tag("tr", cells, class_="one" if one.weight == 1 else None))
    return _compared(("Change", "Consistency"), known, rows)


def _cells_of(values: list[tuple[str, float | None]], *, digits: int = 2) -> list[Markup]:
    return [
        tag("td", number(value, digits), class_=f"{kind} first" if i == 0 else kind)
        for i, (kind, value) in enumerate(values)
    ]


def _compared(
    names: tuple[str, ...],
    known: Sequence[tuple[str, Strip, Figures]],
    rows: list[Markup],
    more: tuple[str, ...] = (),
) -> Markup:
    """A table with, under each of ``names``, a column for the LoRA and one for the control."""
    above = [tag("th"), *(tag("th", name, colspan=len(known), class_="first") for name in names)]
    head = [tag("th", "Weight")]
    for _ in names:
        head += [
            tag("th", strip.label, class_=f"{kind} first" if i == 0 else kind)
            for i, (kind, strip, _) in enumerate(known)
        ]
    head += [tag("th", name, class_="first" if i == 0 else None) for i, name in enumerate(more)]
    return table(head, rows, above=[*above, *(tag("th") for _ in more)])


def _on_original(figures: StripResult) -> Markup:
    head = (tag("th", name) for name in ("Weight", "Effect", "Leakage", "Projection"))
    rows = (
        tag(
            "tr",
            tag("td", weight_text(one.weight)),
            (tag("td", number(value)) for value in (one.effect, one.leakage, one.projection)),
            class_="one" if one.weight == 1 else None,
        )
        for one in figures.weights
    )
    text = "Measured on the copier's own pictures of A, the only place where the ideal result, B, is known."
    return join((tag("h3", "Effect on A itself"), tag("p", text, class_="small"), table(head, rows)))


def _seeds(seeds: SeedTable) -> Markup:
    control = any(row.control for row in seeds.rows)
    head: list[Content] = [tag("th", "Figure"), tag("th", "LoRA: mean", class_="lora"), tag("th", "range")]
    if control:
        head += [tag("th", "Plain LoRA: mean", class_="control"), tag("th", "range")]
    rows = []
    for row in seeds.rows:
        cells: list[Content] = [tag("td", row.label)]
        for kind, one in (("lora", row.lora), ("control", row.control)) if control else (("lora", row.lora),):
            cells.append(tag("td", number(one.mean if one else None), class_=kind))
            cells.append(tag("td", f"{number(one.low)} … {number(one.high)}" if one else "–"))
        rows.append(tag("tr", cells))
    named = ", ".join(map(str, seeds.seeds))
    text = f"The whole method, trained anew with each of {len(seeds.seeds)} seeds ({named})."
    return join((tag("h3", "Over several trainings"), tag("p", text, class_="small"), table(head, rows)))


def _closeness(closeness: ClosenessReport) -> Markup:
    result = closeness.result
    verdict: Content = None
    if closeness.limit is not None:
        good = result.median <= closeness.limit
        verdict = chip(f"median {number(result.median)}, limit {number(closeness.limit)}", good=good)
    cells = (
        tag(
            "figure",
            picture_tag(closeness.pictures[i], described(draw)),
            tag("figcaption", number(result.distances[i])),
        )
        for i, draw in enumerate(closeness.draws)
    )
    text = (
        "Drawn with checkpoint, copier and the second training's LoRA together: this should be B. A distance "
        f"of 0 is B, 1 as far from it as A is. The median is {number(result.median)}."
    )
    return join(
        (
            tag("h3", "Did the second training learn B? ", verdict),
            tag("p", text, class_="small"),
            tag("div", cells, class_="row8"),
        )
    )
