"""What a run hands over: files, their metadata, and the report."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from pipeline_fake import FakeWorker, digests, execute, execute_and_publish, given, make_request

from copier import temporary
from copier.checkpoint.header import read_header
from copier.codec import load_recipe, recipe_from_json, recipe_from_text, recipe_to_json
from copier.digest import file_digest
from copier.disk import existing_parent
from copier.errors import BadInput
from copier.evaluation.effect import effect_strip
from copier.evaluation.report_data import Check
from copier.images.effects import grayscale
from copier.images.metrics import distance
from copier.ops.lora_file import read_lora
from copier.pipeline.files import LORA, load_folder, load_picture, picture_paths
from copier.pipeline.reporting import file_stem
from copier.pipeline.results import (
    PROVENANCE_KEY,
    RECIPE_KEY,
    check_folder,
    prepare_folder,
    publish,
    publish_run,
    report,
)
from copier.pipeline.store import StageStore
from copier.request import Edit, PictureFiles
from copier.temporary import create_temporary
from copier.version import program

LORAS = {"copier", "wide", "sum", "lora", "control"}


@pytest.fixture(scope="module")
def published(finished):
    """(request, run, files by stage name) of a published run."""
    _, request, done = finished
    prepare_folder(request.out)
    return request, done, publish_run(done)


def test_the_same_content_is_published_once_and_other_content_gets_a_number(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    contents = ("one", "one", "two", "three", "two", "one")
    placed = []
    for i, content in enumerate(contents):
        source = tmp_path / f"{i}.txt"
        source.write_text(content)
        placed.append(publish(source, out / "x.tar").name)
    assert placed == ["x.tar", "x.tar", "x-2.tar", "x-3.tar", "x-2.tar", "x.tar"]
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "x.tar": "one",
        "x-2.tar": "two",
        "x-3.tar": "three",
    }


def test_nothing_that_lies_in_the_way_is_replaced(tmp_path):
    source = tmp_path / "source"
    source.write_text("new")
    (tmp_path / "x.png").mkdir()
    (tmp_path / "x-2.png").symlink_to(tmp_path / "nowhere")
    assert publish(source, tmp_path / "x.png") == tmp_path / "x-3.png"
    assert not (tmp_path / "nowhere").exists()


def test_a_file_that_comes_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "x.png"
    source.write_text("ours")

    def meanwhile(name: str) -> None:
        if name == "out-rename" and not target.exists():
            target.write_text("theirs")

    monkeypatch.setattr(temporary, "write_point", meanwhile)
    assert publish(source, target).name == "x-2.png"
    assert (target.read_text(), (tmp_path / "x-2.png").read_text()) == ("theirs", "ours")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_disk_without_links_is_published_to_as_well(tmp_path, monkeypatch):
    def no_links(*args: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    source = tmp_path / "source"
    source.write_text("new")
    assert publish(source, tmp_path / "x.png").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_copy_that_fails_leaves_no_file(tmp_path, monkeypatch):
    def full_disk(*args: object) -> None:
        raise OSError("no space left")

    source = tmp_path / "source"
    source.write_text("new")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        publish(source, tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_title_that_is_a_stages_name_leaves_both_their_files(finished, tmp_path):
    _, request, done = finished
    out = tmp_path / "out"
    out.mkdir()
    titled = replace(done, request=replace(request, title="Copier", out=out))
    files = publish_run(titled)
    assert files["copier"].name == "copier.safetensors"
    assert files[request.recipe.result].name == f"copier-{request.recipe.result}.safetensors"


def test_a_lora_is_not_published_again_for_another_recipe_that_made_the_same(finished, tmp_path):
    _, request, done = finished
    out = tmp_path / "out"
    out.mkdir()
    first = publish_run(replace(done, request=replace(request, out=out)))
    before = digests(out)
    other = replace(request, out=out, recipe=replace(request.recipe, explanation="Another one."))
    again = publish_run(replace(done, request=other))
    assert again == first
    assert {name: before[name] for name in before if name.endswith(".safetensors")} == {
        name: digest for name, digest in digests(out).items() if name.endswith(".safetensors")
    }


def test_a_run_hands_over_the_pair_all_loras_and_the_recipe(published):
    request, _, files = published
    assert set(files) == {"a", "b"} | LORAS
    assert sorted(path.name for path in request.out.iterdir()) == [
        "a.png",
        "copier.safetensors",
        "grayscale-b.png",
        "grayscale-control.safetensors",
        "grayscale-recipe.json",
        "grayscale-sum.safetensors",
        "grayscale-wide.safetensors",
        "grayscale.safetensors",
    ]
    assert load_recipe(str(request.out / "grayscale-recipe.json")) == request.recipe
    assert files["lora"].name == "grayscale.safetensors"


def test_publishing_again_changes_nothing_and_another_result_gets_a_new_name(published, tmp_path):
    request, done, files = published
    before = digests(request.out)
    assert publish_run(done) == files
    assert digests(request.out) == before
    other = given(replace(request, title="Grayscale"), b=Edit("saturation"))
    execute_and_publish(other, done.entries["a"].folder.parents[1], FakeWorker())
    after = digests(request.out)
    assert before.items() <= after.items()
    assert {"grayscale-2.safetensors", "grayscale-b-2.png"} <= set(after)
    assert "copier-2.safetensors" not in after
    assert not list(StageStore(done.entries["a"].folder.parent).root.glob(".tmp-*"))


@pytest.mark.parametrize("stage", sorted(LORAS))
def test_every_lora_carries_the_recipe_and_digests_of_what_it_was_made_from(published, stage):
    request, done, files = published
    metadata = read_header(files[stage]).metadata
    assert recipe_from_text(metadata[RECIPE_KEY], stage) == request.recipe
    assert recipe_from_json(recipe_to_json(request.recipe)) == request.recipe
    assert metadata["ss_output_name"] == metadata["modelspec.title"] == files[stage].stem
    origin = json.loads(metadata[PROVENANCE_KEY])
    assert origin["key"] == done.plan[stage].key
    assert origin["checkpoint_sha256"] == file_digest(request.checkpoint)
    sets = ["a"] if stage == "copier" else ["a", "b"]
    assert origin["pictures_sha256"] == {name: [file_digest(files[name])] for name in sets}
    upstream = {"copier": [], "control": [], "wide": ["copier"], "sum": ["copier", "wide"]}
    needed = upstream.get(stage, ["copier", "sum", "wide"])
    assert origin["loras"] == {name: file_digest(done.entries[name].path(LORA)) for name in needed}


@pytest.mark.parametrize("stage", sorted(LORAS))
def test_no_folder_of_this_machine_travels_with_a_lora(published, stage):
    request, _, files = published
    content = files[stage].read_bytes()
    for folder in (request.out, request.checkpoint.parent, Path.home(), Path.cwd()):
        if len(folder.parts) > 1:
            assert os.fsencode(folder) not in content
    text = json.dumps(dict(read_header(files[stage]).metadata))
    parts = {part for part in request.out.parent.parts if len(part) > 4}
    assert parts
    assert not [part for part in parts if part in text]


def test_a_published_lora_is_the_stored_one_in_half_precision(published):
    _, done, files = published
    for stage in LORAS:
        stored = read_lora(done.entries[stage].path(LORA)).weights
        final = read_lora(files[stage]).weights
        assert {info.dtype for info in read_header(files[stage]).tensors.values()} == {"F16"}
        assert {i.dtype for i in read_header(done.entries[stage].path(LORA)).tensors.values()} == {"F32"}
        assert stored.keys() == final.keys()
        for module, delta in stored.items():
            error = (final[module].dense() - delta.dense()).norm() / delta.dense().norm()
            # Two factors, each rounded to 11 bits; not zero, or nothing would have been rounded.
            assert 0 < float(error) < 2 * 2**-11


def test_files_are_named_by_title_edit_or_recipe(published):
    _, done, _ = published

    def stem(**changes: object) -> str:
        return file_stem(replace(done, request=replace(done.request, **changes)))

    assert stem() == "grayscale"
    assert stem(title="Grayscale, by Difference!") == "grayscale-by-difference"
    assert stem(title="../..") == "lora"
    pictures = given(done.request, b=Edit("high_contrast")).pictures
    assert stem(pictures=pictures) == "high_contrast"


def test_the_report_has_the_figures_that_the_pictures_have(published):
    _, done, files = published
    written = report([done], [files])
    told = json.loads(written.json.read_text(encoding="utf-8"))
    assert told["program"] == program()
    assert re.fullmatch(r"copier \d+\.\d+.*", told["program"])
    gate = done.entries["gate"].record.outcome
    assert told["gate"]["median"] == pytest.approx(gate["median"], abs=1e-6)
    assert told["gate"]["within"] == gate["within"]
    assert len(told["results"]) == 1
    result = told["results"][0]
    # A second route: from the stored pictures, by the definition.
    base = load_folder(done.entries["evaluate.base"].path("+0.000"))
    for role in ("lora", "control"):
        entry = done.entries[f"evaluate.{role}"]
        strip = {weight: load_folder(entry.path(f"{weight:+.3f}")) for weight in (-1.0, 1.0)}
        figures = effect_strip(base, grayscale, strip, 0.02)
        assert [one["weight"] for one in result[role]["weights"]] == [-1.0, 1.0]
        for one, wanted in zip(result[role]["weights"], figures.weights, strict=True):
            for name in ("effect", "leakage", "projection"):
                assert one[name] == pytest.approx(getattr(wanted, name), abs=1e-6)
    assert [(one["name"], one["status"]) for one in told["stages"]] == [
        (one.stage.name, "run") for one in done.stages
    ]
    assert result["files"] == [f"grayscale{part}.safetensors" for part in ("-wide", "-sum", "", "-control")]
    assert [curve["label"] for curve in told["losses"]] == ["copier"]
    assert sorted(curve["label"] for curve in result["losses"]) == ["control", "wide"]
    labels = [check["label"] for check in (*told["checks"], *result["checks"])]
    assert len(labels) == len(set(labels)) == 12


def test_the_checks_compare_the_figures_with_the_goals(published):
    _, done, files = published
    told = json.loads(report([done], [files]).json.read_text(encoding="utf-8"))
    ours, control = (told["results"][0][role]["weights"][1] for role in ("lora", "control"))
    checks = {check["label"]: check for check in (*told["checks"], *told["results"][0]["checks"])}
    gain = checks["Effect at +1 above the control's by"]
    assert gain["value"] == pytest.approx(ours["effect"] - control["effect"], abs=2e-6)
    ratio = checks["Leakage at +1 over the control's"]
    assert ratio["value"] == pytest.approx(ours["leakage"] / control["leakage"], rel=1e-4)
    assert (gain["limit"], ratio["limit"]) == (0.3, 0.55)
    assert checks["Projection at +1"]["value"] == pytest.approx(ours["projection"], abs=1e-6)
    for check in checks.values():
        good = check["value"] >= check["limit"] if check["at_least"] else check["value"] <= check["limit"]
        assert check["passed"] == (good and not (check["strict"] and check["value"] == check["limit"]))
    assert {label for label, check in checks.items() if check["strict"]} == {
        "Effect at the best weight",
        "Projection: smallest rise from a weight to the next",
    }
    rise = checks["Projection: smallest rise from a weight to the next"]
    weights = told["results"][0]["lora"]["weights"]
    assert rise["value"] == pytest.approx(weights[1]["projection"] - weights[0]["projection"], abs=2e-6)
    assert checks["Ceiling at +1"]["value"] == weights[1]["ceiling"]
    assert checks["Ceiling at +1"]["limit"] == 0.6
    for label, count in (("Gate: pictures drawn", 3), ("Evaluation: pairs of prompt and seed", 3)):
        assert (checks[label]["value"], checks[label]["limit"], checks[label]["passed"]) == (count, 16, False)


@pytest.mark.parametrize(("edit", "count"), [("high_contrast", 1), ("blur", 0)])
def test_the_ceiling_has_a_goal_only_for_edits_that_every_autoencoder_shows(tmp_path, edit, count):
    request = make_request(tmp_path, b=Edit(edit))
    execute_and_publish(request, tmp_path / "data", FakeWorker())
    told = json.loads((request.out / "report.json").read_text(encoding="utf-8"))
    labels = [check["label"] for check in told["results"][0]["checks"]]
    assert labels.count("Ceiling at +1") == count
    assert told["results"][0]["lora"]["weights"][1]["ceiling"] is not None


def test_a_strict_check_is_missed_at_its_limit():
    assert Check("x", 0.0, 0.0, at_least=True).passed
    assert not Check("x", 0.0, 0.0, at_least=True, strict=True).passed
    assert Check("x", 1e-9, 0.0, at_least=True, strict=True).passed
    assert not Check("x", None, 0.0, at_least=True, strict=True).passed


def test_runs_of_the_same_edit_get_names_of_their_own_in_the_report(published):
    _, done, files = published
    told = json.loads(report([done, done], [files, files]).json.read_text(encoding="utf-8"))
    assert [result["name"] for result in told["results"]] == ["grayscale", "grayscale-2"]
    assert len(told["stages"]) == len(done.stages)


def test_a_hand_edit_is_reported_without_an_effect(tmp_path, published):
    _, _, files = published
    request = make_request(tmp_path, a=PictureFiles((files["a"],)), b=PictureFiles((files["b"],)))
    execute_and_publish(request, tmp_path / "data", FakeWorker())
    told = json.loads((request.out / "report.json").read_text(encoding="utf-8"))
    assert told["results"][0]["lora"]["measures"] == "change"
    assert "effect" not in told["results"][0]["lora"]["weights"][0]
    assert "Effect on A itself" in (request.out / "report.html").read_text(encoding="utf-8")
    # A second route: from the stored pictures, by the definition. They are drawn on base + copier.
    done = execute(request, tmp_path / "data", FakeWorker())
    drawn = done.entries["evaluate.original"]
    assert done.plan.draws["evaluate.original"].loras == (("copier", 1.0),)
    x, y = load_folder(drawn.path("+0.000")), load_folder(drawn.path("+1.000"))
    b = load_picture(files["b"])
    effects = [1 - distance(one, b) / distance(plain, b) for plain, one in zip(x, y, strict=True)]
    figures = told["results"][0]["on_original"]
    assert [one["weight"] for one in figures["weights"]] == [-1.0, 1.0]
    assert figures["weights"][1]["effect"] == pytest.approx(sum(effects) / len(effects), abs=1e-5)
    assert (request.out / "every-kind.safetensors").is_file()


def test_a_report_of_ours_may_be_replaced_at_every_step_of_its_writing(published, tmp_path):
    request, done, files = published
    report([done], [files])
    for name in ("report.html", "sheet.png", "report.json"):
        (tmp_path / name).write_bytes((request.out / name).read_bytes())
        check_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report.json", b'{"schema": "other"}'),
        ("report.json", b"[1]"),
        ("report.json", b"{"),
        ("report.json", b"\xff"),
        ("report.html", b"<html>mine</html>"),
        ("report.html", b"\xff\xfe"),
        ("sheet.png", b"\x89PNG"),
    ],
)
def test_a_report_of_another_program_is_refused_and_kept(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=rf"{name} is not one of this program's reports.*--out"):
        check_folder(tmp_path)
    assert (tmp_path / name).read_bytes() == content


def test_a_folder_that_cannot_be_used_is_refused_and_checking_writes_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="is a file"):
        check_folder(tmp_path / "file" / "out")
    check_folder(tmp_path / "new" / "deep")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert existing_parent(tmp_path / "new" / "deep") == tmp_path
    with pytest.raises(BadInput, match="cannot be written"):
        prepare_folder(tmp_path / "file" / "out")


def test_leftovers_in_the_output_folder_are_swept_unless_someone_is_writing_them(tmp_path):
    out = tmp_path / "out"
    prepare_folder(out)
    living, place = create_temporary(out / "lora.safetensors")
    (out / ".lora.safetensors.0123abcd.tmp").write_text("dead")
    (out / ".report.html.00004711.tmp").write_text("dead")
    theirs = [".mine.tmp", ".notes.1.tmp", ".lora.safetensors.old.tmp", ".lora.safetensors.0123abcde.tmp"]
    for name in theirs:
        (out / name).write_text("not ours")
    (out / "lora.safetensors").write_text("whole")
    prepare_folder(out)
    assert sorted(path.name for path in out.iterdir()) == sorted([place.name, *theirs, "lora.safetensors"])
    living.close()
    prepare_folder(out)
    assert sorted(path.name for path in out.iterdir()) == sorted([*theirs, "lora.safetensors"])


def test_the_published_pair_is_the_stored_one(published):
    _, done, files = published
    for side in ("a", "b"):
        assert files[side].read_bytes() == picture_paths(done.entries[side])[0].read_bytes()
