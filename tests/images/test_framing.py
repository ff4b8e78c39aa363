"""Crops and zooms: the same for pictures of a size, inside them, and what they show."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from copier.images.framing import seen, views, views_of
from copier.recipe import PictureSet


@pytest.mark.parametrize("size", [(128, 128), (512, 512), (768, 512), (64, 192)])
@pytest.mark.parametrize("nearest", [0.3, 0.75])
def test_views_lie_inside_and_have_sides_that_are_multiples_of_64(
    size: tuple[int, int], nearest: float
) -> None:
    found = views(size, 24, nearest=nearest, seed=3)
    assert found[0].box == (0, 0, *size)
    assert found == views(size, 24, nearest=nearest, seed=3)
    assert found[1:] != views(size, 24, nearest=nearest, seed=4)[1:]
    for view in found:
        left, top, right, bottom = view.box
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert view.size[0] % 64 == 0 == view.size[1] % 64
        assert right - left >= nearest * size[0] - 1
        assert bottom - top >= nearest * size[1] - 1
        assert view.zoom == 1.0 or view.size == size


def test_there_are_crops_and_zooms() -> None:
    zooms = [view.zoom for view in views((512, 512), 20, nearest=0.4, seed=1)[1:]]
    assert 5 <= sum(zoom == 1.0 for zoom in zooms) <= 12
    assert max(zooms) > 1.3
    assert {view.size for view in views((128, 128), 9, nearest=0.75, seed=1)} == {(128, 128)}


def test_a_crop_shows_its_pixels_and_a_zoom_its_part() -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8))
    for view in views((512, 512), 8, nearest=0.4, seed=1):
        left, top, right, bottom = view.box
        part = np.asarray(picture)[top:bottom, left:right]
        shown = np.asarray(seen(picture, view))
        assert shown.shape == (view.size[1], view.size[0], 3)
        if view.zoom == 1.0:
            assert (shown == part).all()
        else:
            assert shown.mean() == pytest.approx(part.mean(), abs=1.0)


def test_every_picture_of_a_set_has_places_of_its_own() -> None:
    spec = PictureSet("views", part_of="a", views=6)
    assert views_of(spec, (512, 512), 0) != views_of(spec, (512, 512), 1)
    assert len(views_of(PictureSet("one", part_of="a", number=2), (64, 64), 1)) == 1
