"""The three files of a report: complete, self-contained, escaped, stable, and written whole."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from copier.evaluation import report
from copier.evaluation.report import write_report
from copier.evaluation.report_data import Check, Draw, LossCurve
from copier.evaluation.report_html import report_html
from copier.evaluation.report_json import VERSION, report_json
from copier.evaluation.report_sheet import report_sheet
from copier.markup import number

KEYS = {
    "": "schema version program created title summary recipe checkpoint seconds original gate results losses "
    "stages checks notes",
    "original": "prompt width height",
    "gate": "passed enough median median_limit within count single_limit share base_median pictures",
    "gate.pictures": "prompt seed guidance distance base_distance",
    "results": "name title explanation files pair draws lora control comparison closeness on_original losses "
    "seeds checks",
    "results.pair": "distance threshold changed mean maximum box areas outside warnings",
    "results.draws": "prompt seed guidance",
    "results.lora": "label measures floor best_weight suggested_weights rises weights",
    "results.lora.weights": "weight effect leakage projection ceiling change counted left_out pairs",
    "results.lora.weights.pairs": "wanted change effect leakage projection ceiling",
    "results.comparison": "weight effect_gain leakage_ratio",
    "results.closeness": "median limit pair_distance pictures",
    "results.seeds": "seeds rows",
    "results.seeds.rows": "label lora control",
    "results.seeds.rows.lora": "mean low high count",
    "results.checks": "label value limit at_least strict passed",
    "losses": "label steps losses",
    "stages": "name kind status reason seconds",
}
"""Every key of version 1 of report.json. A change here is a change of the schema: see docs/report.md."""


@pytest.fixture(scope="module")
def page(full) -> str:
    return report_html(full)


def at(value, path):
    """The first value at ``path`` of nested objects, going into the first member of every list."""
    for key in path.split(".") if path else []:
        value = value[key]
        value = value[0] if isinstance(value, list) else value
    return value


class Tags(HTMLParser):
    """Open elements, attributes and text; fails on an element closed in the wrong order."""

    VOID = ("img", "meta", "br", "hr", "wbr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return tags


def test_the_schema_is_that_of_version_1(full):
    figures = report_json(full)
    assert (figures["schema"], figures["version"]) == ("copier.report", 1)
    for path, keys in KEYS.items():
        assert list(at(figures, path)) == keys.split(), path
    change = figures["results"][1]["lora"]
    assert list(change) == ["label", "measures", "weights"] and change["measures"] == "change"
    assert list(change["weights"][0]) == ["weight", "magnitude", "consistency", "magnitudes"]
    assert figures["results"][1]["on_original"]["measures"] == "effect"


def test_every_key_of_the_schema_is_documented():
    text = (report.Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    assert f"version is {VERSION}" in text
    for path, keys in KEYS.items():
        for key in keys.split():
            assert f"`{key}`" in text, f"{path}.{key}"
    for key in ("magnitude", "consistency", "magnitudes"):
        assert f"`{key}`" in text


def test_the_figures_are_those_that_were_measured(full):
    figures = json.loads(json.dumps(report_json(full), allow_nan=False))
    first = full.results[0]
    measured_weights = first.strip.figures.weights
    for written, measured in zip(figures["results"][0]["lora"]["weights"], measured_weights, strict=True):
        assert written["weight"] == measured.weight
        for name in ("effect", "leakage", "projection", "ceiling"):
            assert written[name] == pytest.approx(getattr(measured, name), abs=1e-6)
        assert len(written["pairs"]) == len(first.draws)
    assert figures["gate"]["median"] == pytest.approx(full.gate.result.median, abs=1e-6)
    assert figures["results"][0]["comparison"]["effect_gain"] == pytest.approx(
        first.strip.figures.at(1.0).effect - first.control.figures.at(1.0).effect, abs=2e-6
    )


def test_parts_that_are_missing_are_null_or_empty(least):
    figures = report_json(least)
    result = figures["results"][0]
    assert figures["gate"] is None and figures["seconds"] is None and figures["stages"] == []
    for key in ("control", "comparison", "closeness", "on_original", "seeds"):
        assert result[key] is None


def test_numbers_that_json_does_not_know_become_null(full):
    bad = replace(full, seconds=float("nan"), checks=(Check("x", float("inf"), 0.3, at_least=True),))
    figures = report_json(bad)
    assert figures["seconds"] is None and figures["checks"][0]["value"] is None


def test_the_page_loads_nothing(page):
    for tag, attributes in parsed(page).found:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value)
        assert tag not in ("script", "link", "iframe", "object", "embed")
    assert "http" not in page and "@import" not in page and "url(" not in page


def test_links_lead_somewhere(page):
    found = parsed(page).found
    ids = {attributes["id"] for _, attributes in found if "id" in attributes}
    links = [attributes["href"] for tag, attributes in found if tag == "a"]
    assert len(links) >= 4 and {link[1:] for link in links} <= ids
    assert len(ids) == sum("id" in attributes for _, attributes in found)


def test_every_picture_is_on_the_page_and_says_what_it_shows(full, page):
    pictures = [attributes for tag, attributes in parsed(page).found if tag == "img"]
    draws = len(full.results[0].draws)
    per_strip = len(full.results[0].strip.pictures) + 1
    expected = 3 * 2 + 2 * 16 + draws * (2 * per_strip + 1) + draws * 2 * per_strip + 2 * 4
    assert len(pictures) == expected
    assert all(picture["alt"] and picture["width"] and picture["height"] for picture in pictures)


def test_the_page_says_the_figures(full, page):
    text = parsed(page).text
    figures, control = full.results[0].strip.figures, full.results[0].control.figures
    for weight in (-1.0, -0.5, 0.5, 1.0, 1.5):
        for name in ("effect", "leakage", "projection"):
            assert number(getattr(figures.at(weight), name)) in text
            assert number(getattr(control.at(weight), name)) in text
    assert number(full.gate.result.median) in text and "16 of 16" in text and "gate passed" in text
    for stage in full.stages:
        assert stage.name in text and stage.reason in text
    for said in ("reused", "6 min 43 s", "0.49 … 0.57", *full.notes, full.summary, full.title):
        assert said in text
    assert "Leakage at +1, of the control's: 0.61 (at most 0.55)" in text


def test_a_hand_edit_is_never_said_to_have_an_effect_elsewhere(full):
    result = replace(full.results[1], on_original=None, seeds=None, checks=())
    text = parsed(report_html(replace(full, results=(result,)))).text.partition("The pair")[2]
    assert "Consistency" in text and "made by hand" in text
    assert "effect" not in text.lower()


def test_whatever_the_user_wrote_is_escaped(least):
    nasty = '<script>alert("x")</script>&\'$title'
    result = least.results[0]
    data = replace(
        least,
        title=nasty,
        summary=nasty,
        a_prompt=nasty,
        recipe=nasty,
        checkpoint=nasty,
        notes=(nasty,),
        losses=(LossCurve(nasty, (1, 2), (0.5, 0.4)),),
        checks=(Check(nasty, 1.0, 0.5, at_least=True),),
        results=(
            replace(
                result,
                title=nasty,
                explanation=nasty,
                files=(nasty,),
                draws=tuple(Draw(nasty, i) for i in range(len(result.draws))),
                strip=replace(result.strip, label=nasty),
            ),
        ),
    )
    page = report_html(data)
    assert "<script" not in page
    tags = parsed(page)
    assert tags.text.count(nasty) >= 12
    assert report_json(data)["title"] == nasty
    assert report_sheet(data).size[0] > 0


def test_the_least_report_leaves_out_what_it_lacks(least):
    text = parsed(report_html(least)).text
    for absent in ("Plain LoRA", "gate", "Stages", "Loss", "Over several trainings", "learn B", "None"):
        assert absent not in text.partition("The pair")[2], absent


def test_the_sheet_shows_the_pair_the_gate_and_every_strip(full):
    everything = report_sheet(full)
    fewer = report_sheet(replace(full, gate=None, results=full.results[:1]), rows=1)
    # Two rows of gate, and seven of the eight rows of strips.
    assert everything.height > fewer.height + 9 * 112
    assert len(everything.getcolors(1 << 24)) > 5000


def test_a_report_is_written_whole_and_replaces_the_one_before(full, tmp_path, least):
    folder = tmp_path / "new" / "demo"
    files = write_report(least, folder)
    before = files.html.read_text(encoding="utf-8")
    files = write_report(full, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json", "sheet.png"]
    assert json.loads(files.json.read_text(encoding="utf-8")) == report_json(full)
    assert files.html.read_text(encoding="utf-8") == report_html(full) != before
    assert files.sheet.read_bytes().startswith(b"\x89PNG")


def test_a_report_that_cannot_be_written_leaves_the_old_one_and_no_stray_file(tmp_path, monkeypatch, least):
    files = write_report(least, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(*_args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("copier.temporary.os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_report(replace(least, title="Another"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert files.json.exists()


def test_reports_are_the_same_for_the_same_data(full, page):
    assert report_html(full) == page


def test_stacks_and_prompts_that_do_not_match_are_refused(full):
    result = full.results[0]
    with pytest.raises(ValueError, match="'grayscale' has 15 prompts and seeds, but 16"):
        replace(result, draws=result.draws[1:])
    with pytest.raises(ValueError, match="the gate has 15"):
        replace(full.gate, draws=full.gate.draws[1:])
    with pytest.raises(ValueError, match="different names"):
        replace(full, results=(result, result))
    with pytest.raises(ValueError, match="2 steps, but 1 losses"):
        LossCurve("x", (1, 2), (0.5,))


def test_the_version_is_part_of_the_style_of_no_one(page):
    """The style sheet and the frame are filled in: no placeholder is left."""
    assert not re.search(r"\$(title|style|body)\b", page)
