"""Contact sheets: everything that goes in is on the sheet, at its size, whatever the font can draw."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from copier.images import sheet
from copier.images.sheet import SPACE, Block, Group, Row, Tile, contact_sheet, fitted, grid

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, colour)


def area(image: Image.Image, colour: tuple[int, int, int]) -> int:
    """Pixels of exactly that colour."""
    return int(np.all(np.asarray(image) == colour, axis=-1).sum())


def test_every_picture_is_on_the_grid_at_its_size():
    drawn = grid([plain(RED), plain(GREEN), plain(BLUE)], columns=2, size=32)
    inner = 30 * 30  # less the frame
    assert [area(drawn, colour) for colour in (RED, GREEN, BLUE)] == [inner] * 3
    assert np.asarray(drawn)[0, 0].tolist() == [255, 255, 255]


def test_arrays_and_pictures_may_be_mixed_and_are_scaled_in_proportion():
    wide = np.zeros((20, 40, 3), dtype=np.float32)
    assert fitted(wide, 64).size == (64, 32)
    assert fitted(plain(RED, (400, 100)), 64).size == (64, 16)
    assert fitted(plain(RED), 32).size == (32, 32)
    drawn = contact_sheet([Block((Row((Tile(wide), Tile(plain(RED)))),), size=32)])
    assert area(drawn, (0, 0, 0)) == 30 * 14 and area(drawn, RED) == 30 * 30


def test_text_takes_room_of_its_own_and_is_drawn():
    bare = grid([plain(RED)] * 2, size=64)
    captioned = grid([plain(RED)] * 2, captions=["one", "two"], size=64)
    block = Block((Row((Tile(plain(RED)), SPACE, Tile(plain(BLUE))), label="a prompt"),), size=64)
    titled = contact_sheet([block], title="Title", text="What it is.")
    grouped = contact_sheet([Block(block.rows, "Heading", "Text", 64, (Group(2, "Group", RED),))])
    assert bare.height < captioned.height < titled.height
    assert bare.width < titled.width
    assert area(titled, sheet.INK) > 20
    assert area(grouped, RED) > area(grid([plain(RED)], size=64), RED) - 64**2 + 5


def test_a_coloured_frame_marks_a_tile():
    marked = contact_sheet([Block((Row((Tile(plain(RED), colour=BLUE),)),), size=32)])
    assert area(marked, BLUE) == 32**2 - 28**2


def test_text_too_long_is_cut_and_never_widens_the_sheet():
    short = grid([plain(RED)] * 3, captions=["x"] * 3)
    long = grid([plain(RED)] * 3, captions=["a very long caption " * 5] * 3)
    assert short.size == long.size


@pytest.mark.parametrize("text", ["赤い星、白い背景", "un\nretour  à la ligne", "−1 … +1", "", "\t"])
@pytest.mark.parametrize("old", [False, True])
def test_any_text_can_be_drawn_also_with_the_bitmap_font_of_old_pillows(text, old, monkeypatch):
    if old:
        bitmap = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)

        def load_default() -> ImageFont.ImageFont:
            return bitmap()

        monkeypatch.setattr(ImageFont, "load_default", load_default)
    rows = (Row((Tile(plain(RED), text),), label=text),)
    drawn = contact_sheet([Block(rows, heading=text, text=text, size=32)], title=text, text=text)
    assert area(drawn, RED) == 30 * 30


def test_an_empty_sheet_is_still_a_picture():
    assert contact_sheet([]).width > 0 and grid([]).height > 0
