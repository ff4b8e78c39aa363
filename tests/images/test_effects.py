"""The edits: known values, identities, bounds, and that they leave their argument alone."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from copier.errors import BadInput, UnknownName
from copier.images.effects import (
    EFFECTS,
    LUMA_REC601,
    apply_effect,
    blur,
    effect_parameters,
    flatten,
    grayscale,
    high_contrast,
    hue,
    jpeg_noise,
    outline,
    posterise,
    to_array,
    to_image,
)
from copier.images.metrics import distance, psnr

IDENTITY = {
    "grayscale": {"strength": 0},
    "outline": {"strength": 0},
    "high_contrast": {"amount": 1},
    "blur": {"radius": 0},
    "sharpen": {"amount": 0},
    "saturation": {"factor": 1},
    "brightness": {"amount": 0},
    "hue": {"degrees": 0},
}
"""Settings that change nothing; flatten, posterise and JPEG noise always change something."""


@pytest.fixture
def picture() -> np.ndarray:
    """Soft noise of 8-bit values in all channels, with a hard edge down the middle."""
    rng = np.random.default_rng(7)
    small = Image.fromarray(rng.integers(40, 216, (8, 8, 3), dtype=np.uint8))
    soft = to_array(small.resize((64, 64), Image.Resampling.BICUBIC))
    soft[:, 32:] *= 0.5
    return to_array(to_image(soft))


@pytest.mark.parametrize("name", EFFECTS)
def test_an_edit_changes_the_picture_keeps_its_form_and_leaves_the_argument_alone(name, picture):
    before = picture.copy()
    edited = EFFECTS[name].function(picture)
    assert np.array_equal(picture, before)
    assert edited.shape == picture.shape and edited.dtype == np.float32
    assert edited.min() >= 0 and edited.max() <= 1
    assert distance(edited, picture) > 0.005


@pytest.mark.parametrize("name", IDENTITY)
def test_an_edit_of_nothing_is_the_identity(name, picture):
    edited = EFFECTS[name].function(picture, **effect_parameters(name, IDENTITY[name]))
    assert np.abs(edited - picture).max() < 1e-6


@pytest.mark.parametrize("name", EFFECTS)
def test_edits_are_functions_of_the_picture_alone(name, picture):
    function = EFFECTS[name].function
    assert np.array_equal(function(picture), function(picture))


@pytest.mark.parametrize("name", EFFECTS)
def test_every_bound_is_enforced_and_named(name):
    for parameter in EFFECTS[name].parameters:
        for value in (parameter.minimum, parameter.maximum, parameter.default):
            assert effect_parameters(name, {parameter.name: value})[parameter.name] == value
        for value in (parameter.minimum - 1, parameter.maximum + 1, float("nan")):
            with pytest.raises(BadInput) as caught:
                effect_parameters(name, {parameter.name: value})
            message = str(caught.value)
            assert f"{name}.{parameter.name}" in message
            assert f"{parameter.minimum:g}" in message and f"{parameter.maximum:g}" in message


@pytest.mark.parametrize("name", EFFECTS)
def test_the_extremes_of_every_parameter_work(name, picture):
    for parameter in EFFECTS[name].parameters:
        for value in (parameter.minimum, parameter.maximum):
            edited = apply_effect(to_image(picture), name, {parameter.name: value})
            assert edited.size == (64, 64) and edited.mode == "RGB"


def test_fractions_and_text_are_refused_where_whole_numbers_are_due():
    with pytest.raises(BadInput, match="whole number"):
        effect_parameters("posterise", {"levels": 3.5})
    with pytest.raises(BadInput, match="give a number"):
        effect_parameters("posterise", {"levels": "4"})  # type: ignore[dict-item]
    assert effect_parameters("posterise", {"levels": 5.0}) == {"levels": 5}


def test_the_nearest_names_are_offered():
    with pytest.raises(UnknownName, match="'grayscale'"):
        effect_parameters("greyscale")
    with pytest.raises(UnknownName, match="'threshold'"):
        effect_parameters("outline", {"treshold": 0.1})


def test_grayscale_is_the_luma_of_bt601():
    primaries = np.eye(3, dtype=np.float32)[None]
    gray = grayscale(primaries)
    assert np.allclose(gray[0, :, 0], [0.299, 0.587, 0.114])
    assert np.ptp(gray, axis=-1).max() < 1e-6


def test_grayscale_agrees_with_pillow(picture):
    assert np.abs(grayscale(picture)[..., 0] * 255 - np.asarray(to_image(picture).convert("L"))).max() < 1.5


def test_grayscale_of_half_strength_lies_halfway(picture):
    assert np.allclose(grayscale(picture, strength=0.5), (picture + grayscale(picture)) / 2, atol=1e-6)


def test_high_contrast_keeps_middle_gray_and_spreads_the_rest():
    ramp = np.array([0.0, 0.4, 0.5, 0.6, 1.0], dtype=np.float32)[None, :, None].repeat(3, axis=2)
    assert np.allclose(high_contrast(ramp, amount=2.0)[0, :, 0], [0, 0.3, 0.5, 0.7, 1])


@pytest.mark.parametrize("levels", [2, 3, 7])
def test_posterise_yields_exactly_its_levels(levels):
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None, :, None].repeat(3, axis=2)
    found = np.unique(posterise(ramp, levels=levels))
    assert np.allclose(found, np.linspace(0, 1, levels))


@pytest.mark.parametrize("degrees", [-150, -60, 30, 120])
def test_hue_turns_the_colours_and_keeps_the_luma(degrees):
    rng = np.random.default_rng(3)
    dull = (0.5 + 0.15 * rng.standard_normal((16, 16, 3)).clip(-1, 1)).astype(np.float32)
    turned = hue(dull, degrees=degrees)
    luma = np.array([0.213, 0.715, 0.072], dtype=np.float32)
    assert np.abs(turned @ luma - dull @ luma).max() < 2e-3
    assert distance(turned, dull) > 0.03
    gray = np.full((4, 4, 3), 0.3, dtype=np.float32)
    assert np.allclose(hue(gray, degrees=degrees), gray, atol=1e-3)
    assert np.allclose(hue(turned, degrees=-degrees), dull, atol=5e-3)


def test_flatten_leaves_no_more_than_its_tones(picture):
    tones = np.unique(flatten(picture, colours=5, radius=1).reshape(-1, 3), axis=0)
    assert 2 <= len(tones) <= 5 < len(np.unique(picture.reshape(-1, 3), axis=0))


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_outline_draws_a_black_line_of_its_width_at_an_edge_and_nothing_elsewhere(width):
    halves = np.ones((40, 40, 3), dtype=np.float32)
    halves[:, 20:] = 0.4
    drawn = outline(halves, width=width)[20, :, 0] / halves[20, :, 0]
    dark = np.flatnonzero(drawn < 0.5)
    assert len(dark) == 2 * (width // 2) + 2 and dark.mean() == 19.5
    assert np.all(drawn[:15] == 1) and np.all(drawn[25:] == 1)


def test_outline_sees_only_edges_above_its_threshold():
    faint = np.full((16, 16, 3), 0.5, dtype=np.float32)
    faint[:, 8:, 1] += 0.2
    assert outline(faint, threshold=0.19).min() < 0.1
    assert np.array_equal(outline(faint, threshold=0.21), faint)


def test_blur_takes_detail_away_and_keeps_the_mean(picture):
    soft = blur(picture, radius=3.0)
    assert soft.std() < 0.95 * picture.std()
    assert abs(float(soft.mean() - picture.mean())) < 0.01


def test_jpeg_noise_is_worse_at_lower_quality(picture):
    assert 15 < psnr(jpeg_noise(picture, quality=2), picture) < psnr(jpeg_noise(picture, quality=80), picture)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_pillow_pictures_of_other_modes_are_taken(mode, picture):
    assert apply_effect(to_image(picture).convert(mode), "brightness").mode == "RGB"


def test_arrays_and_pillow_pictures_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert np.array_equal(np.asarray(to_image(to_array(Image.fromarray(levels)))), levels)
    assert abs(float(LUMA_REC601.sum()) - 1) < 1e-6
