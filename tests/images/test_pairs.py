"""Reading pictures, each kind of bad one with its message, and the difference map."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from copier.errors import BadPicture
from copier.images.effects import grayscale, jpeg_noise, to_array, to_image
from copier.images.pairs import (
    change_mask,
    check_pair,
    check_size,
    difference_image,
    difference_map,
    fitted,
    read_mask,
    read_picture,
)
from copier.request import Fit


def noise(width: int = 128, height: int = 128) -> Image.Image:
    rng = np.random.default_rng(5)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def read(path: Path) -> tuple[Image.Image, list[str]]:
    notes: list[str] = []
    return read_picture(path, note=notes.append), notes


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_a_lossless_picture_is_read_as_it_is(kind, tmp_path):
    image = noise()
    image.save(tmp_path / "a", format=kind, **({"lossless": True} if kind == "WEBP" else {}))
    found, notes = read(tmp_path / "a")
    assert found.mode == "RGB" and notes == []
    assert np.array_equal(np.asarray(found), np.asarray(image))


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.4, 0.97])
def test_a_truncated_picture_is_refused_even_where_the_process_tolerates_them(
    kind, lenient, share, tmp_path, monkeypatch
):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    noise().save(tmp_path / "whole", format=kind)
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "part.png").write_bytes(content[: int(share * len(content))])
    with pytest.raises(BadPicture, match=r"part\.png is (damaged or cut off|not a picture)"):
        read_picture(tmp_path / "part.png")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_a_png_with_a_flipped_bit_is_refused(tmp_path):
    noise().save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[len(content) // 2] ^= 0x10
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadPicture, match="damaged"):
        read_picture(tmp_path / "a.png")


def test_files_that_are_no_pictures_say_so(tmp_path):
    with pytest.raises(BadPicture, match=r"there is no file .*missing\.png"):
        read_picture(tmp_path / "missing.png")
    with pytest.raises(BadPicture, match="is a folder"):
        read_picture(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(BadPicture, match="is a pipe"):
            read_picture(tmp_path / "pipe.png")
    (tmp_path / "a.png").write_text("a picture of a cat")
    with pytest.raises(BadPicture, match=r"not a picture.*PNG, JPEG or WebP"):
        read_picture(tmp_path / "a.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(BadPicture, match="not a picture"):
        read_picture(tmp_path / "empty.png")


def test_a_picture_too_large_to_be_decoded_is_refused(tmp_path, monkeypatch):
    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadPicture, match="too large: at most 2,000 pixels"):
        read_picture(tmp_path / "a.png")


def test_transparency_is_laid_on_white_with_a_note(tmp_path):
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 32, 64))
    image.paste((0, 0, 0, 51), (32, 32, 64, 64))
    image.save(tmp_path / "a.png")
    found, notes = read(tmp_path / "a.png")
    assert found.getpixel((5, 5)) == (0, 0, 255)
    assert found.getpixel((50, 5)) == (255, 255, 255)
    assert found.getpixel((50, 50)) == (204, 204, 204)
    assert len(notes) == 1 and "transparent parts" in notes[0]


def test_an_opaque_alpha_channel_needs_no_note(tmp_path):
    noise().convert("RGBA").save(tmp_path / "a.png")
    found, notes = read(tmp_path / "a.png")
    assert notes == [] and np.array_equal(np.asarray(found), np.asarray(noise()))


def test_the_transparent_colour_of_a_palette_counts_as_transparency(tmp_path):
    image = Image.new("P", (64, 64), 0)
    image.putpalette([10, 20, 30, 200, 0, 0] + [0] * 762)
    image.paste(1, (0, 0, 32, 32))
    image.save(tmp_path / "a.png", transparency=0)
    found, notes = read(tmp_path / "a.png")
    assert found.getpixel((1, 1)) == (200, 0, 0) and found.getpixel((60, 60)) == (255, 255, 255)
    assert len(notes) == 1


def test_the_orientation_of_a_camera_is_applied(tmp_path):
    image = Image.new("RGB", (128, 64), "black")
    image.paste((255, 255, 255), (0, 0, 64, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    found, _ = read(tmp_path / "a.png")
    assert found.size == (64, 128)
    assert found.getpixel((30, 10)) == (255, 255, 255) and found.getpixel((30, 120)) == (0, 0, 0)


def test_of_an_animation_the_first_frame_is_taken_with_a_note(tmp_path):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found, notes = read(tmp_path / "a.gif")
    assert found.getpixel((9, 9)) == (255, 0, 0)
    assert len(notes) == 1 and "3 frames" in notes[0]


def test_sixteen_bit_gray_keeps_its_tones(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    found, notes = read(tmp_path / "a.png")
    assert np.abs(np.asarray(found)[..., 0] - ramp / 257.0).max() < 0.51
    assert len(notes) == 1 and "16 bits" in notes[0]


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((64, 64), dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(BadPicture, match="floating-point"):
        read_picture(tmp_path / "a.tiff")


@pytest.mark.parametrize("size", [(64, 64), (512, 768), (1024, 64)])
def test_sizes_that_fit_pass(size):
    check_size(Image.new("RGB", size))


@pytest.mark.parametrize(
    ("size", "named"), [((500, 512), "512 x 512"), ((512, 33), "512 x 64"), ((32, 32), "64 x 64")]
)
def test_sizes_that_do_not_fit_name_the_nearest_that_does(size, named):
    with pytest.raises(BadPicture, match="multiples of 64") as caught:
        check_size(Image.new("RGB", size), "A")
    assert f"A is {size[0]} x {size[1]} px" in str(caught.value) and named in str(caught.value)


def test_a_pair_of_two_sizes_names_both_and_the_remedy():
    with pytest.raises(BadPicture, match=r"A is 128 x 64 px and B is 64 x 128 px.*copy of A"):
        check_pair(Image.new("RGB", (128, 64)), Image.new("RGB", (64, 128)))
    with pytest.raises(BadPicture, match="multiples of 64"):
        check_pair(Image.new("RGB", (100, 100)), Image.new("RGB", (100, 100)))
    check_pair(noise(), noise())


def smooth() -> np.ndarray:
    ys, xs = np.mgrid[0:128, 0:128].astype(np.float32) / 128
    return to_array(to_image(np.stack([xs, ys, 1 - xs], axis=-1) * 0.8 + 0.1))


def test_the_map_of_one_changed_rectangle_has_its_share_its_size_and_its_box():
    a = smooth()
    b = a.copy()
    b[20:40, 60:100, 0] = np.clip(b[20:40, 60:100, 0] - 0.4, 0, 1)
    found = difference_map(a, b)
    assert found.box == (60, 20, 100, 40)
    assert found.changed == pytest.approx(20 * 40 / 128**2)
    assert found.maximum == pytest.approx(0.4 / np.sqrt(3), rel=1e-5)
    assert found.mean == pytest.approx(found.changed * found.maximum, rel=1e-3)
    assert (found.areas, found.outside, found.warnings) == (1, 0, ())


def test_an_edit_of_the_whole_picture_gives_no_warning():
    found = difference_map(smooth(), grayscale(smooth()))
    assert found.changed > 0.9 and found.warnings == ()


def test_identical_pictures_are_named_as_such():
    found = difference_map(to_image(smooth()), to_image(smooth()))
    assert found.identical and found.box is None and found.areas == 0
    assert len(found.warnings) == 1 and "identical" in found.warnings[0]


def test_a_change_too_faint_to_show_is_named():
    found = difference_map(smooth(), np.clip(smooth() + 1 / 255, 0, 1))
    assert not found.identical and found.box is None
    assert len(found.warnings) == 1 and "1.0 of 255" in found.warnings[0]


def test_something_that_moved_outside_the_main_area_is_pointed_at():
    a = smooth()
    b = a.copy()
    b[20:80, 60:100] = 0
    b[120:122, 10:13] = 1
    found = difference_map(a, b)
    assert found.areas == 2 and 0 < found.outside < 0.02
    assert len(found.warnings) == 1
    assert "in 1 other place," in found.warnings[0] and "paste A's pixels back" in found.warnings[0]
    x, y = (int(found.warnings[0].split(f"{axis} ")[1].split(".")[0].split(",")[0]) for axis in "xy")
    assert 10 <= x < 13 and 120 <= y < 122


def test_two_areas_of_like_size_are_taken_as_meant():
    b = smooth()
    b[10:30, 10:30] = 0
    b[100:120, 100:120] = 0
    found = difference_map(smooth(), b)
    assert found.areas == 2 and 0.2 < found.outside < 0.6 and found.warnings == ()


def test_compression_of_the_rest_of_the_picture_is_noticed():
    rng = np.random.default_rng(2)
    a = to_array(to_image(np.clip(smooth() + 0.03 * rng.standard_normal((128, 128, 3)), 0, 1)))
    b = jpeg_noise(a, quality=95)
    b[20:60, 20:60] = 0
    warnings = difference_map(a, b, threshold=0.1).warnings
    assert len(warnings) == 1 and "compression" in warnings[0]


def test_maps_of_two_sizes_are_refused():
    with pytest.raises(BadPicture, match="A is 128 x 64 px and B is 128 x 128 px"):
        difference_map(noise(128, 64), noise())


def test_the_heat_map_is_black_where_nothing_changed_and_lightest_where_most_did():
    b = smooth()
    b[0:64] = 1 - b[0:64]
    found = difference_map(smooth(), b)
    heat = np.asarray(difference_image(found)).astype(int)
    assert heat.shape == (128, 128, 3)
    assert heat[100].max() <= 4
    place = np.unravel_index(int(found.magnitude.argmax()), found.magnitude.shape)
    assert tuple(heat[place]) == (252, 255, 164)
    order = np.argsort(found.magnitude.ravel())
    assert np.all(np.diff(heat.sum(axis=-1).ravel()[order]) >= -12)


def test_the_scale_of_a_heat_map_can_be_fixed():
    b = np.clip(smooth() + 0.05, 0, 1)
    found = difference_map(smooth(), b)
    own, fixed = (np.asarray(difference_image(found, full=full)).mean() for full in (None, 1.0))
    assert fixed < own < 160


def test_the_mask_is_the_upright_alpha_channel_or_none_where_all_is_opaque(tmp_path):
    pixels = np.full((64, 128, 4), 255, np.uint8)
    pixels[0, :, 3] = 7
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row of the file is the right side of the picture
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    mask = np.asarray(read_mask(tmp_path / "a.png"))
    assert mask.shape == (128, 64)
    assert (mask[:, -1] == 7).all() and (mask[:, :-1] == 255).all()
    Image.fromarray(pixels[1:]).save(tmp_path / "opaque.png")
    Image.fromarray(pixels[..., :3]).save(tmp_path / "plain.png")
    assert read_mask(tmp_path / "opaque.png") is None
    assert read_mask(tmp_path / "plain.png") is None


@pytest.mark.parametrize(
    ("size", "cropped", "padded"), [((130, 70), (128, 64), (192, 128)), ((64, 128), (64, 128), (64, 128))]
)
def test_fitting_takes_the_middle_or_adds_white_and_scales_nothing(size, cropped, padded):
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    crop, pad = fitted(image, Fit.CROP), fitted(image, Fit.PAD)
    assert (crop.size, pad.size) == (cropped, padded)
    left, top = (size[0] - cropped[0]) // 2, (size[1] - cropped[1]) // 2
    assert np.array_equal(np.asarray(crop), noise[top : top + cropped[1], left : left + cropped[0]])
    left, top = -((size[0] - padded[0]) // 2), -((size[1] - padded[1]) // 2)
    inside = np.asarray(pad)[top : top + size[1], left : left + size[0]]
    assert np.array_equal(inside, noise)
    assert int(np.asarray(pad).astype(int).sum()) == int(noise.astype(int).sum()) + 765 * (
        padded[0] * padded[1] - size[0] * size[1]
    )
    assert fitted(image, Fit.NONE) is image


def test_a_picture_too_small_to_crop_stays_and_a_mask_is_padded_with_what_counts_for_nothing():
    small = Image.new("RGB", (40, 100))
    assert fitted(small, Fit.CROP) is small
    mask = np.asarray(fitted(Image.new("L", (40, 64), 255), Fit.PAD))
    assert mask.shape == (64, 64) and (mask[:, :12] == 0).all() and (mask[:, 12:52] == 255).all()


def test_the_mask_of_a_pair_is_what_changed_and_a_margin_around_it():
    rng = np.random.default_rng(3)
    a = np.full((64, 96, 3), 0.5, np.float32)
    b = a.copy()
    b[rng.random((64, 96)) > 0.998] = 0.9
    b[20:24, 30:50, 1] = 0.3
    b[50, 60] += 0.01  # below what shows
    differs = np.abs(a - b).max(axis=-1) > 0.05
    assert 0 < differs.sum() < differs.size / 10
    for margin in (0, 5):
        expected = np.zeros_like(differs)
        for row, column in np.argwhere(differs):
            top, left = max(0, row - margin), max(0, column - margin)
            expected[top : row + margin + 1, left : column + margin + 1] = True
        mask = change_mask(a, b, margin=margin)
        assert mask.mode == "L" and mask.size == (96, 64)
        np.testing.assert_array_equal(np.asarray(mask) == 255, expected)
    assert np.asarray(change_mask(a, b, margin=512)).min() == 255
    with pytest.raises(BadPicture, match=r"at most 0\.5 of 255.*set pair_mask to false"):
        change_mask(a, a + np.float32(0.002), margin=3)
