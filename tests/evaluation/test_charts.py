"""Charts and markup: ticks, smoothing, places of points, and escaping by construction."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from copier.evaluation.charts import Series, line_chart, smoothed, thinned, ticks
from copier.evaluation.data_uri import data_uri
from copier.markup import Markup, duration, join, number, tag, weight_text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1]),
        (-1, 1.5, [-1, 0, 1]),
        (0.1, 0.33, [0.1, 0.2, 0.3]),
        (0, 300, [0, 100, 200, 300]),
        (2, 2, [2]),
    ],
)
def test_ticks_are_round_and_within(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("high", [1e-6, 0.7, 3, 17, 4096, 1e7])
def test_there_are_always_a_few_ticks(high):
    found = ticks(0, high)
    assert 3 <= len(found) <= 6 and all(0 <= tick <= high * 1.001 for tick in found)


def test_smoothing_keeps_lines_and_length_and_agrees_with_a_convolution():
    line = [0.5 * i for i in range(40)]
    means = [np.mean(line[max(0, i - 3) : i + 4]) for i in range(40)]
    assert smoothed(line, 7) == pytest.approx(means)
    noise = np.random.default_rng(0).random(100)
    assert smoothed(list(noise), 5)[2:-2] == pytest.approx(np.convolve(noise, np.ones(5) / 5, "valid"))
    assert smoothed([], 5) == []


def test_thinning_keeps_the_ends():
    points = [(float(i), 0.0) for i in range(1001)]
    kept = thinned(points, 100)
    assert kept[0] == points[0] and kept[-1] == points[-1] and len(kept) <= 102
    assert thinned(points[:5], 100) == tuple(points[:5])


def test_a_chart_places_its_points_and_cuts_off_what_lies_beyond():
    series = Series("LoRA", ((0.0, 0.0), (1.0, 1.0), (2.0, 9.0)), "lora", dots=True)
    svg = line_chart([series], title="t", x_label="x", y_range=(0.0, 2.0))
    (points,) = re.findall(r'<polyline points="([^"]+)"', svg)
    (x0, y0), (x1, y1), (x2, y2) = ([float(v) for v in place.split(",")] for place in points.split())
    assert x0 < x1 < x2 and x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 > y1 > y2 and y1 - y2 == pytest.approx(y0 - y1, abs=0.11)
    assert "<title>LoRA: 9.00 at 2.0</title>" in svg


def test_a_chart_without_points_is_nothing():
    assert line_chart([Series("LoRA", (), "lora")], title="t", x_label="x") == ""


def test_one_point_and_equal_values_make_a_chart():
    assert "polyline" in line_chart([Series("a", ((1.0, 0.5), (1.0, 0.5)), "lora")], title="t", x_label="x")


def test_text_is_escaped_and_markup_is_not():
    nasty = '<img src=x onerror="alert(1)">&'
    assert tag("p", nasty, tag("b", "x"), title=nasty) == (
        '<p title="&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;">'
        "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;<b>x</b></p>"
    )
    assert join(["a", None, 1, [Markup("<i>"), "<"]]) == "a1<i>&lt;"
    drawn = tag("img", src="a", class_="b", stroke_width=2, alt=None)
    assert drawn == '<img src="a" class="b" stroke-width="2">'


def test_numbers_are_rounded_with_a_real_minus_and_no_negative_zero():
    assert [number(v) for v in (0.126, -1.5, -0.001, 0.0, None)] == ["0.13", "−1.50", "0.00", "0.00", "–"]
    assert [weight_text(w) for w in (1.0, -0.5, 0.0, 1.25)] == ["+1", "−0.5", "0", "+1.25"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (7800, "2 h 10 min")],
)
def test_durations_read_as_a_person_says_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("lossless", [True, False])
def test_a_data_uri_holds_the_picture(lossless):
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(100, 120, (40, 80, 3), dtype=np.uint8))
    kind, _, content = data_uri(image, 80, lossless=lossless).partition(";base64,")
    found = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == ("data:image/png" if lossless else "data:image/jpeg")
    apart = np.abs(np.asarray(found, dtype=int) - np.asarray(image)).max()
    assert found.size == (80, 40) and (apart == 0 if lossless else apart < 24)
    small = data_uri(image, 20).partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(small))).size == (20, 10)
