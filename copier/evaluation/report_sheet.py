"""``sheet.png``: the report's pictures as one picture, to look at and to pass on."""

from __future__ import annotations

from PIL import Image

from copier.evaluation.effect import ChangeFigures, WeightFigures
from copier.evaluation.report_data import GateReport, ReportData, Result, Strip
from copier.images.pairs import difference_image, difference_map
from copier.images.sheet import PAPER, SPACE, Block, Colour, Group, Row, Tile, as_image, contact_sheet
from copier.markup import number

_LORA: Colour = (29, 95, 208)
_CONTROL: Colour = (186, 92, 10)
_GOOD: Colour = (22, 128, 74)
_BAD: Colour = (196, 43, 43)
_ROWS = 4
_TILE = 112


def report_sheet(data: ReportData, *, rows: int = _ROWS) -> Image.Image:
    """A, each B and what differs; the gate; and of every result the strips of ``rows`` prompts."""
    blocks = [_pairs(data)]
    if data.gate is not None:
        blocks.append(_gate(data.gate))
    blocks += [_strips(result, rows) for result in data.results]
    return contact_sheet(blocks, title=data.title, text=data.summary)


def _plain(text: str) -> str:
    # Pillow's own font lacks the real minus sign.
    return text.replace("−", "-").replace("–", "-")


def _pairs(data: ReportData) -> Block:
    tiles = [Tile(data.a, "A")]
    for result in data.results:
        tiles += [
            SPACE,
            Tile(result.b, f"B: {result.title}"),
            Tile(difference_image(difference_map(as_image(data.a), as_image(result.b))), "what differs"),
        ]
    return Block((Row(tuple(tiles)),), size=200)


def _gate(gate: GateReport) -> Block:
    result, spec = gate.result, gate.spec
    rows = []
    for guidance in sorted({draw.guidance for draw in gate.draws}):
        tiles = [
            Tile(gate.pictures[i], number(distance), _GOOD if distance <= spec.single_limit else _BAD)
            for i, distance in enumerate(result.distances)
            if gate.draws[i].guidance == guidance
        ]
        label = f"guidance {guidance:g}" if guidance > 1 else "no guidance"
        rows += [Row(tuple(tiles[i : i + 8]), label) for i in range(0, len(tiles), 8)]
    verdict = "passed" if result.passed(spec) else "NOT passed"
    return Block(
        tuple(rows),
        heading=f"Copier gate {verdict}: median {number(result.median)}",
        text=(
            f"Base and copier, {len(gate.draws)} prompts and seeds that no training saw. 0 is A itself, 1 is "
            f"as far as without the copier; the median may be {number(spec.median_limit)}, a single "
            f"picture {number(spec.single_limit)}."
        ),
        size=_TILE,
    )


def _strips(result: Result, rows: int) -> Block:
    strips = [(result.strip, _LORA)] + ([(result.control, _CONTROL)] if result.control else [])
    weights = sorted({weight for strip, _ in strips for weight in strip.pictures})
    lead = 1 if result.ideals is None else 2
    groups = tuple(
        Group(lead + 1 + i * (len(weights) + 1), strip.label, colour)
        for i, (strip, colour) in enumerate(strips)
    )
    drawn = []
    for i, draw in enumerate(result.draws[:rows]):
        tiles = [Tile(result.base[i], "base")]
        if result.ideals is not None:
            tiles.append(Tile(result.ideals[i], "ideal at +1"))
        for strip, colour in strips:
            tiles += [SPACE, *_tiles(strip, weights, i, colour)]
        drawn.append(Row(tuple(tiles), label=f"{draw.prompt}, seed {draw.seed}"))
    text = " ".join(_line(strip) for strip, _ in strips)
    return Block(tuple(drawn), heading=result.title, text=text, size=_TILE, groups=groups)


def _tiles(strip: Strip, weights: list[float], i: int, colour: Colour) -> list[Tile]:
    return [
        Tile(strip.pictures[weight][i], f"{weight:+g}", colour if weight == 1 else None)
        if weight in strip.pictures
        else Tile(Image.new("RGB", (_TILE, _TILE), PAPER))
        for weight in weights
    ]


def _line(strip: Strip) -> str:
    figures = strip.figures.at(1.0)
    text = "not drawn at +1"
    if isinstance(figures, WeightFigures):
        text = f"at +1 effect {number(figures.effect)}, leakage {number(figures.leakage)}"
    elif isinstance(figures, ChangeFigures):
        text = f"at +1 change {number(figures.magnitude)}, consistency {number(figures.consistency)}"
    return _plain(f"{strip.label}: {text}.")
