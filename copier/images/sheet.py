"""Contact sheets: rows of pictures with labels and captions, drawn as one picture.

A sheet is a column of blocks; a block is a heading over rows of tiles. Text is set in Pillow's own
font, so that a sheet looks alike on every machine; before Pillow 10.1 that is a small bitmap font,
which knows one size and Latin letters only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from copier.images.effects import Picture, to_image

AnyPicture = Image.Image | Picture
"""A Pillow image, or an array (height, width, 3) in [0, 1]."""

Colour = tuple[int, int, int]

PAPER: Colour = (255, 255, 255)
INK: Colour = (28, 30, 36)
MUTED: Colour = (112, 116, 126)
FRAME: Colour = (222, 224, 230)

_MARGIN = 28
_GAP = 6
_FONT = 15
_SMALL = 13
_HEADING = 21
_TITLE = 30
_LABEL_WIDTH = 160
_TEXT_WIDTH = 1100
_ELLIPSIS = "..."

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture with a caption beneath it; without a picture it is a narrow empty space.

    ``colour`` is that of a frame around the picture, drawn two pixels wide.
    """

    picture: AnyPicture | None = None
    caption: str = ""
    colour: Colour | None = None


SPACE = Tile()
"""An empty space between two groups of tiles."""


@dataclass(frozen=True, eq=False)
class Row:
    """Tiles side by side; the label stands to their left."""

    tiles: tuple[Tile, ...]
    label: str = ""


@dataclass(frozen=True)
class Group:
    """A heading over the tiles from the one of index ``start`` on."""

    start: int
    text: str
    colour: Colour = INK


@dataclass(frozen=True, eq=False)
class Block:
    """Rows beneath a heading, a line of explanation and the headings of groups of columns.

    ``size`` is the longer side of a tile in pixels.
    """

    rows: tuple[Row, ...]
    heading: str = ""
    text: str = ""
    size: int = 128
    groups: tuple[Group, ...] = ()


def as_image(picture: AnyPicture) -> Image.Image:
    """``picture`` as a Pillow image of mode RGB."""
    if isinstance(picture, np.ndarray):
        return to_image(picture)
    return picture.convert("RGB")


def fitted(picture: AnyPicture, size: int) -> Image.Image:
    """``picture`` scaled, in proportion, so that its longer side has ``size`` pixels."""
    image = as_image(picture)
    longest = max(image.size)
    if longest == size:
        return image
    scaled = (max(1, round(side * size / longest)) for side in image.size)
    return image.resize((next(scaled), next(scaled)), Image.Resampling.LANCZOS)


def grid(
    pictures: Sequence[AnyPicture], *, columns: int = 8, captions: Sequence[str] = (), size: int = 128
) -> Image.Image:
    """All ``pictures`` in rows of ``columns``, each with its caption, if there are any."""
    tiles = [
        Tile(picture, captions[i] if i < len(captions) else "") for i, picture in enumerate(pictures)
    ]
    rows = tuple(Row(tuple(tiles[i : i + columns])) for i in range(0, len(tiles), columns))
    return contact_sheet([Block(rows, size=size)])


def contact_sheet(blocks: Sequence[Block], *, title: str = "", text: str = "") -> Image.Image:
    """The blocks one below the other, under a title and a paragraph of text."""
    widths = [_block_width(block) for block in blocks]
    width = 2 * _MARGIN + max([*widths, 320 if title or text else 64])
    pieces = [_title(title, text, width)] if title or text else []
    pieces += [_block(block, width) for block in blocks]
    height = 2 * _MARGIN + sum(piece.height for piece in pieces) + _MARGIN * max(0, len(pieces) - 1)
    sheet = Image.new("RGB", (width, height), PAPER)
    y = _MARGIN
    for piece in pieces:
        sheet.paste(piece, (0, y))
        y += piece.height + _MARGIN
    return sheet


def _title(title: str, text: str, width: int) -> Image.Image:
    inner = width - 2 * _MARGIN
    lines = _wrapped(text, _font(_FONT), min(inner, _TEXT_WIDTH))
    top = _line_height(_TITLE) if title else 0
    piece = Image.new("RGB", (width, top + len(lines) * _line_height(_FONT)), PAPER)
    draw = ImageDraw.Draw(piece)
    if title:
        _write(draw, (_MARGIN, 0), _shortened(title, _font(_TITLE), inner), _TITLE, INK)
    for i, line in enumerate(lines):
        _write(draw, (_MARGIN, top + i * _line_height(_FONT)), line, _FONT, MUTED)
    return piece


def _tile_size(block: Block) -> tuple[int, int]:
    sizes = [fitted(t.picture, block.size).size for r in block.rows for t in r.tiles if t.picture is not None]
    return max((w for w, _ in sizes), default=block.size), max((h for _, h in sizes), default=block.size)


def _tile_width(tile: Tile, width: int) -> int:
    return width if tile.picture is not None else width // 5


def _label_width(block: Block) -> int:
    return _LABEL_WIDTH if any(row.label for row in block.rows) else 0


def _block_width(block: Block) -> int:
    width, _ = _tile_size(block)
    rows = (sum(_tile_width(tile, width) + _GAP for tile in row.tiles) - _GAP for row in block.rows)
    return _label_width(block) + max(rows, default=0)


def _block(block: Block, width: int) -> Image.Image:
    tile_size = _tile_size(block)
    inner = width - 2 * _MARGIN
    lines = _wrapped(block.text, _font(_FONT), min(inner, _TEXT_WIDTH))
    heading = _line_height(_HEADING) if block.heading else 0
    groups = _line_height(_FONT) if block.groups else 0
    top = heading + len(lines) * _line_height(_FONT) + (_GAP if heading or lines else 0) + groups
    heights = [_row_height(row, tile_size) for row in block.rows]
    piece = Image.new("RGB", (width, max(1, top + sum(heights) - _GAP)), PAPER)
    draw = ImageDraw.Draw(piece)
    _write(draw, (_MARGIN, 0), _shortened(block.heading, _font(_HEADING), inner), _HEADING, INK)
    for i, line in enumerate(lines):
        _write(draw, (_MARGIN, heading + i * _line_height(_FONT)), line, _FONT, MUTED)
    _groups(draw, block, top - groups, tile_size[0])
    for row, height in zip(block.rows, heights, strict=True):
        _row(piece, row, top, tile_size, block)
        top += height
    return piece


def _row_height(row: Row, tile_size: tuple[int, int]) -> int:
    captions = any(tile.caption for tile in row.tiles)
    return tile_size[1] + _GAP + (_line_height(_SMALL) + _GAP if captions else 0)


def _groups(draw: ImageDraw.ImageDraw, block: Block, y: int, width: int) -> None:
    tiles = block.rows[0].tiles if block.rows else ()
    for group in block.groups:
        before = sum(_tile_width(tile, width) + _GAP for tile in tiles[: group.start])
        _write(draw, (_MARGIN + _label_width(block) + before, y), group.text, _FONT, group.colour)


def _row(piece: Image.Image, row: Row, y: int, tile_size: tuple[int, int], block: Block) -> None:
    draw = ImageDraw.Draw(piece)
    width, height = tile_size
    x = _MARGIN + _label_width(block)
    lines = _wrapped(row.label, _font(_FONT), _LABEL_WIDTH - 2 * _GAP)[:6]
    start = y + max(0, (height - len(lines) * _line_height(_FONT)) // 2)
    for i, line in enumerate(lines):
        _write(draw, (_MARGIN, start + i * _line_height(_FONT)), line, _FONT, INK)
    for tile in row.tiles:
        step = _tile_width(tile, width)
        if tile.picture is not None:
            image = fitted(tile.picture, block.size)
            left, top = x + (width - image.width) // 2, y + (height - image.height) // 2
            piece.paste(image, (left, top))
            box = (left, top, left + image.width - 1, top + image.height - 1)
            draw.rectangle(box, outline=tile.colour or FRAME, width=2 if tile.colour else 1)
        if tile.caption:
            font = _font(_SMALL)
            caption = _shortened(tile.caption, font, step)
            place = x + (step - _text_width(caption, font)) // 2
            _write(draw, (place, y + height + 2), caption, _SMALL, tile.colour or MUTED)
        x += step + _GAP


def _font(size: int) -> _Font:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # before Pillow 10.1
        return ImageFont.load_default()


def _line_height(size: int) -> int:
    return max(round(1.4 * size), 14)


def _printable(text: str, font: _Font) -> str:
    """``text`` on one line, in letters that the font can draw."""
    line = " ".join(text.split())
    if not isinstance(font, ImageFont.FreeTypeFont):
        # The bitmap font raises on anything outside Latin-1.
        return line.encode("latin-1", "replace").decode("latin-1")
    return line


def _text_width(text: str, font: _Font) -> int:
    return round(font.getlength(_printable(text, font)))


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, colour: Colour) -> None:
    font = _font(size)
    draw.text(place, _printable(text, font), fill=colour, font=font)


def _shortened(text: str, font: _Font, width: int) -> str:
    """``text`` cut so that it is no wider than ``width`` pixels, with dots where something is missing."""
    if _text_width(text, font) <= width:
        return text
    cut = text
    while cut and _text_width(cut + _ELLIPSIS, font) > width:
        cut = cut[:-1]
    return cut.rstrip() + _ELLIPSIS


def _wrapped(text: str, font: _Font, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _text_width(longer, font) <= width:
            lines[-1] = longer
        else:
            lines.append(_shortened(word, font, width))
    return lines
