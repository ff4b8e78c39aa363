"""Recipes of other shapes than one pair are data: several originals, base LoRAs from files, two data sets."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_fake import PROMPTS, SIDE, FakeWorker, execute, execute_and_publish, random_lora

from copier.algebra.arithmetic import combine
from copier.algebra.truncation import RankRule, resize
from copier.checkpoint.family import Family
from copier.codec import builtin_recipes, recipe_from_json, recipe_from_text, with_value
from copier.digest import file_digest
from copier.errors import BadInput, BadPicture
from copier.images.metrics import distance
from copier.images.pairs import change_mask, read_picture
from copier.ops.lora_file import network_metadata, read_lora, write_lora
from copier.pipeline.files import LORA, load_folder, load_set, weight_folder
from copier.pipeline.plan import caption_texts, plan
from copier.pipeline.reporting import report_data, seed_table
from copier.pipeline.results import PROVENANCE_KEY, publish_run
from copier.pipeline.runner import run
from copier.pipeline.store import StageStore
from copier.progress import CancelToken, ignore
from copier.recipe import STAGE_KINDS, EvaluateStage, Recipe, Trainer, with_control
from copier.request import Edit, PictureFiles, RunRequest, Source

TRAINING = {"steps": 2, "rank": 2, "resolution": 0, "optimiser": "adamw"}
DRAWN = {**TRAINING, "resolution": 64}
MEASURED = {"prompts": list(PROMPTS), "seeds": [11], "sampling_steps": 2}


def train(name: str, pictures: str, *base: str, **training: Any) -> dict[str, Any]:
    """The JSON of a training."""
    on = [{"lora": one} for one in base]
    trained = {**TRAINING, **training}
    return {"kind": "train", "name": name, "pictures": pictures, "base": on, "training": trained}


def recipe(stages: list[dict[str, Any]], result: str, *pictures: dict[str, Any]) -> Recipe:
    """A recipe from the JSON of its stages; without ``pictures`` of one pair."""
    data = {"format": "copier-recipe", "version": 1, "name": "mine", "title": "Mine", "result": result}
    sets = {"pictures": list(pictures)} if pictures else {}
    return recipe_from_json(json.loads(json.dumps({**data, **sets, "stages": stages})))


SEVERAL = recipe(
    [
        train("copier-1", "a1"),
        {"kind": "gate", "name": "gate-1", "lora": "copier-1", "pictures": "a1", **MEASURED},
        train("lora-1", "b1", "copier-1"),
        train("copier-2", "a2"),
        {"kind": "gate", "name": "gate-2", "lora": "copier-2", "pictures": "a2", **MEASURED},
        train("lora-2", "b2", "copier-2"),
        {
            "kind": "combine",
            "name": "mean",
            "terms": [{"lora": "lora-1", "weight": 0.5}, {"lora": "lora-2", "weight": 0.5}],
            "ranks": {"method": "exact"},
        },
        {"kind": "resize", "name": "lora", "lora": "mean", "ranks": {"rank": 1}},
        {"kind": "evaluate", "name": "evaluate", "lora": "lora", "pictures": "b1", **MEASURED},
    ],
    "lora",
    {"name": "a1"},
    {"name": "b1", "of": "a1"},
    {"name": "a2"},
    {"name": "b2", "of": "a2"},
)

PAIRED_ON_A_LOOK = recipe(
    [
        {"kind": "file", "name": "look"},
        train("copier", "a", "look"),
        {
            "kind": "gate",
            "name": "gate",
            "lora": "copier",
            "base": [{"lora": "look"}],
            **MEASURED,
        },
        train("lora", "b", "look", "copier"),
        {
            "kind": "gate",
            "name": "second",
            "lora": "lora",
            "pictures": "b",
            "base": [{"lora": "look"}, {"lora": "copier"}],
            **MEASURED,
        },
        {"kind": "evaluate", "name": "evaluate", "lora": "lora", **MEASURED},
    ],
    "lora",
)

TWO_SETS = recipe(
    [
        train("style", "screenshots", captions={"policy": "files"}),
        train("subject", "renders", "style", captions={"policy": "files"}),
    ],
    "subject",
    {"name": "screenshots"},
    {"name": "renders"},
)


def pictures(folder: Path, *values: int, side: int = SIDE) -> PictureFiles:
    """Plain pictures 1.png, 2.png, ... of those values in a new folder."""
    folder.mkdir()
    for number, value in enumerate(values, start=1):
        Image.new("RGB", (side, side), (value, 10, 200)).save(folder / f"{number}.png")
    return PictureFiles.at(folder)


def two_originals(folder: Path) -> dict[str, Source]:
    """The pictures of ``SEVERAL``."""
    return {
        "a1": pictures(folder / "one", 30),
        "b1": Edit("grayscale"),
        "a2": pictures(folder / "two", 90),
        "b2": Edit("grayscale"),
    }


def request(folder: Path, what: Recipe, given: dict[str, Source], **loras: Path) -> RunRequest:
    """A request with a "checkpoint" in ``folder``."""
    checkpoint = folder / "checkpoint.safetensors"
    checkpoint.write_bytes(b"weights")
    return RunRequest(what, checkpoint, given, folder / "out", loras=loras)


def test_several_originals_are_averaged_and_each_has_its_gate(tmp_path):
    given = two_originals(tmp_path)
    asked = request(tmp_path, with_control(SEVERAL), given)
    worker = FakeWorker()
    done = execute(asked, tmp_path / "data", worker)
    first, second, mean, final = (
        read_lora(done.entries[name].path(LORA)).weights for name in ("lora-1", "lora-2", "mean", "lora")
    )
    whole = combine([(first, 0.5), (second, 0.5)])
    best = resize(whole, RankRule(rank=1)).lora
    for name in whole:
        torch.testing.assert_close(mean[name].dense(), whole[name].dense(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(final[name].dense(), best[name].dense(), rtol=1e-4, atol=1e-5)
    trained = {one.stage: one for one in worker.requests if hasattr(one, "training")}
    assert trained["lora-2"].base == ((done.entries["copier-2"].path(LORA), 1.0),)
    assert trained["control"].pictures == trained["lora-1"].pictures
    gray = load_set(done.entries["b2"])
    np.testing.assert_array_equal(gray[0][..., 0], gray[0][..., 2])
    files = execute_and_publish(asked, tmp_path / "data", FakeWorker())
    told = json.loads((asked.out / "report.json").read_text(encoding="utf-8"))
    labels = [check["label"] for check in told["checks"]]
    assert {"Gate 'gate-1': median distance", "Gate 'gate-2': median distance"} <= set(labels)
    assert files["lora"].name == "grayscale.safetensors"
    assert {"a1.png", "a2.png", "grayscale-b1.png", "grayscale-b2.png", "copier-2.safetensors"} <= {
        path.name for path in asked.out.iterdir()
    }


def test_a_paired_set_is_trained_on_a_lora_from_a_file(tmp_path):
    look = tmp_path / "look.safetensors"
    weights = random_lora(5, 2)
    write_lora(look, weights, network_metadata(weights, name="look", family=Family.SD1), dtype="fp32")
    a = pictures(tmp_path / "plain", 30, 60, 90)
    given = {"a": a, "b": pictures(tmp_path / "lettered", 130, 160, 190)}
    asked = request(tmp_path, PAIRED_ON_A_LOOK, given, look=look)
    worker = FakeWorker()
    done = execute(asked, tmp_path / "data", worker)
    trained = {one.stage: one for one in worker.requests if hasattr(one, "training")}
    merged = [path for path, _ in trained["lora"].base]
    assert merged == [done.entries["look"].path(LORA), done.entries["copier"].path(LORA)]
    assert merged[0].read_bytes() == look.read_bytes()
    assert [one.shape for one in load_set(done.entries["a"])] == [(SIDE, SIDE, 3)] * 3
    assert len(trained["copier"].pictures) == len(trained["lora"].pictures) == 3
    # All of a set is decoded and encoded, and a hand edit is measured on base + look + copier.
    rebuilt = {one.stage: len(one.pictures) for one in worker.requests if not hasattr(one, "steps")}
    assert rebuilt["gate"] == rebuilt["second"] == 3
    assert [one for one, _ in done.plan.draws["evaluate.original"].loras] == ["look", "copier"]
    published = execute_and_publish(asked, tmp_path / "data", FakeWorker())
    names = {path.name for path in asked.out.iterdir()}
    assert {"a-1.png", "a-2.png", "a-3.png", "mine-b-3.png", "mine.safetensors"} <= names
    assert "look.safetensors" not in names
    origin = json.loads(read_lora(published["lora"]).metadata[PROVENANCE_KEY])
    assert len(origin["pictures_sha256"]["b"]) == 3 and set(origin["loras"]) == {"look", "copier"}
    told = json.loads((asked.out / "report.json").read_text(encoding="utf-8"))
    (note,) = told["notes"]
    assert note.endswith("the first one is shown: a has 3 pictures, b has 3 pictures.")


def test_pictures_of_several_sizes_are_trained_drawn_and_compared_each_at_its_own(tmp_path):
    look = tmp_path / "look.safetensors"
    weights = random_lora(5, 2)
    write_lora(look, weights, network_metadata(weights, name="look", family=Family.SD1), dtype="fp32")
    a, b = pictures(tmp_path / "plain", 30, 60, 90), pictures(tmp_path / "lettered", 130, 160, 190)
    for name, value in (("plain", 60), ("lettered", 160)):
        Image.new("RGB", (2 * SIDE, SIDE), (value, 10, 200)).save(tmp_path / name / "2.png")
    asked = request(tmp_path, PAIRED_ON_A_LOOK, {"a": a, "b": b}, look=look)
    worker = FakeWorker()
    done = execute(asked, tmp_path / "data", worker)
    shapes = [(SIDE, SIDE, 3), (SIDE, 2 * SIDE, 3), (SIDE, SIDE, 3)]
    assert [one.shape for one in load_set(done.entries["a"])] == shapes
    assert done.entries["a"].record.outcome["sizes"] == [[SIDE, SIDE], [2 * SIDE, SIDE], [SIDE, SIDE]]
    # Of the three prompts two are drawn square and one wide; each is where its prompt is.
    drawn = load_folder(done.entries["gate.pictures"].path(weight_folder(0.0)))
    assert [one.shape for one in drawn] == [shapes[0], shapes[0], shapes[1]]
    asked_for = [one for one in worker.requests if one.stage == "gate.pictures"]
    assert [(one.width, one.prompts) for one in asked_for] == [(SIDE, PROMPTS[:2]), (2 * SIDE, PROMPTS[2:])]
    # A second route: from the stored pictures, by the definition.
    base = load_folder(done.entries["gate.base"].path(weight_folder(0.0)))
    ideals = load_folder(done.entries["gate"].path("ideal"))
    assert [one.shape for one in ideals] == shapes

    def far(picture):
        return min(distance(picture, ideal) for ideal in ideals if ideal.shape == picture.shape)

    median = np.median([far(one) for one in base])
    figures = done.entries["gate"].record.outcome["distances"]
    assert figures == pytest.approx([far(one) / median for one in drawn])
    execute_and_publish(asked, tmp_path / "data", FakeWorker())
    told = json.loads((asked.out / "report.json").read_text(encoding="utf-8"))
    assert "several sizes: 64 x 64, 128 x 64 px" in told["notes"][1]
    assert told["results"][0]["on_original"] is not None


def test_masks_of_the_originals_reach_the_training_on_their_edits_and_change_no_other_key(tmp_path):
    given = {"a": pictures(tmp_path / "a", 30, 60), "b": Edit("grayscale")}
    clear = Image.new("RGBA", (SIDE, SIDE), (30, 10, 200, 255))
    clear.putpixel((3, 2), (0, 0, 0, 0))
    clear.save(tmp_path / "a" / "1.png")
    plain = request(tmp_path, recipe([train("copier", "a"), train("lora", "b", "copier")], "lora"), given)
    masked = [stage if stage.name == "copier" else _masked(stage) for stage in plain.recipe.stages]
    by_scripts = replace(plain.recipe, trainer=Trainer.SD_SCRIPTS)
    asked = replace(plain, recipe=replace(by_scripts, stages=tuple(masked)))
    worker = FakeWorker()
    execute(asked, tmp_path / "data", worker)
    (first, second) = (one for one in worker.requests if hasattr(one, "training"))
    assert first.masks == ()
    assert second.masks[1] is None, "the second original is opaque"
    with Image.open(second.masks[0]) as mask:
        assert mask.mode == "L" and mask.getextrema() == (0, 255) and mask.getpixel((3, 2)) == 0
    unmasked = {stage.name: stage.key for stage in plan(plain, file_digest).stages}
    assert unmasked["a"] != plan(asked, file_digest)["a"].key
    assert "masks" not in plan(plain, file_digest)["a"].ingredients


def _masked(stage):
    return replace(stage, training=replace(stage.training, masked_loss=True))


@pytest.mark.parametrize("trainer", list(Trainer))
def test_masks_of_pairs_reach_the_training_and_only_that_one(tmp_path, trainer):
    given = {"a": pictures(tmp_path / "a", 30, 60), "b": Edit("grayscale")}
    stages = [train("copier", "a"), train("lora", "b", "copier", pair_mask=True, mask_margin=3)]
    asked = request(tmp_path, replace(recipe(stages, "lora"), trainer=trainer), given)
    masks = {}

    class Looking(FakeWorker):
        def train(self, request, **rest):
            masks[request.stage] = [np.asarray(read_picture(path).convert("L")) for path in request.masks]
            return super().train(request, **rest)

    worker = Looking()
    done = execute(asked, tmp_path / "data", worker)
    first, second = load_set(done.entries["a"]), load_set(done.entries["b"])
    assert masks["copier"] == [] and len(masks["lora"]) == 2
    for a, b, mask in zip(first, second, masks["lora"], strict=True):
        np.testing.assert_array_equal(mask, np.asarray(change_mask(a, b, margin=3)))
    assert not done.entries["lora"].path("masks").exists(), "they can be made again"
    # An edit that hardly shows is found out before anything is trained.
    faint = tmp_path / "faint"
    faint.mkdir()
    for path in given["a"].paths:
        picture = np.asarray(Image.open(path).convert("RGB"))
        Image.fromarray(picture ^ 1).save(faint / path.name)
    told = FakeWorker()
    with pytest.raises(BadPicture, match="set pair_mask to false"):
        execute(replace(asked, pictures={**given, "b": PictureFiles.at(faint)}), tmp_path / "more", told)
    assert not [call for call in told.calls if call.startswith("train")]


def test_a_view_in_which_nothing_changes_has_no_mask_and_is_found_before_anything_is_trained(tmp_path):
    given = pictures(tmp_path / "a", 30)
    (tmp_path / "b").mkdir()
    picture = np.array(Image.open(given.paths[0]).convert("RGB"))
    picture[-4:, -4:] ^= 255  # only the views that reach this corner show it
    Image.fromarray(picture).save(tmp_path / "b" / given.paths[0].name)
    sets = [
        {"name": "a"},
        {"name": "b", "of": "a"},
        {"name": "views-a", "part_of": "a", "views": 4},
        {"name": "views-b", "of": "views-a", "part_of": "b", "views": 4},
    ]
    on_views = {
        masked: recipe(
            [train("copier", "a"), train("lora", "views-b", "copier", pair_mask=masked)], "lora", *sets
        )
        for masked in (False, True)
    }
    both = {"a": given, "b": PictureFiles.at(tmp_path / "b")}
    execute(request(tmp_path, on_views[False], both), tmp_path / "data", FakeWorker())
    told = FakeWorker()
    with pytest.raises(BadPicture, match="set pair_mask to false"):
        execute(request(tmp_path, on_views[True], both), tmp_path / "more", told)
    assert not [call for call in told.calls if call.startswith("train")]


def test_a_target_of_pairs_gets_the_originals_and_a_concept_no_picture(tmp_path):
    given = {"a": pictures(tmp_path / "a", 30, 60), "b": Edit("grayscale")}
    concept = {"action": "move", "target": "a star", "positive": "a heart"}
    by_text = {"kind": "train", "name": "moved", "training": DRAWN, "concept": concept}
    terms = {"kind": "combine", "name": "lora", "terms": [{"lora": "pair"}, {"lora": "moved"}]}
    asked = request(tmp_path, recipe([train("pair", "b", target="pair"), by_text, terms], "lora"), given)
    worker = FakeWorker()
    done = execute(asked, tmp_path / "data", worker)
    pair, moved = worker.requests
    assert [path.parent.name for path in pair.originals] == [done.entries["a"].folder.name] * 2
    assert [path.name for path in pair.originals] == [path.name for path in pair.pictures]
    assert (moved.pictures, moved.concept) == ((), asked.recipe.stage("moved").concept)
    assert pair.concept is None
    again = FakeWorker()
    execute(asked, tmp_path / "data", again)
    assert again.calls == []
    other = with_value(asked.recipe, "moved.concept.guidance=2")
    keys = [{one.name: one.key for one in plan(replace(asked, recipe=it), file_digest).stages}
            for it in (asked.recipe, other)]  # fmt: skip
    assert {name for name in keys[0] if keys[0][name] != keys[1][name]} == {"moved", "lora"}


def test_a_recipe_by_text_alone_needs_no_picture(tmp_path):
    asked = RunRequest(builtin_recipes()["erase-pocket"], tmp_path / "checkpoint", {}, tmp_path / "out")
    asked.checkpoint.write_bytes(b"a checkpoint")
    worker = FakeWorker()
    done = execute(asked, tmp_path / "data", worker)
    assert worker.calls == ["train lora"]
    asked.out.mkdir()
    assert sorted(publish_run(done)) == ["lora"]


def test_checks_on_the_way_draw_few_pictures_of_their_own_and_end_the_training(tmp_path):
    given = {"a": pictures(tmp_path / "a", 30), "b": Edit("grayscale")}
    checks = {"check_every": 2, "check_pictures": 3, "check_sampling_steps": 1}
    copier = train("copier", "a", steps=9) | checks
    gate = {"kind": "gate", "name": "gate", "lora": "copier", **MEASURED, "seeds": [11, 12]}
    held = gate | {"median_limit": 2.0, "single_limit": 2.0}
    asked = request(tmp_path, recipe([copier, held], "copier"), given)
    worker = FakeWorker()
    done = execute(asked, tmp_path / "data", worker)
    assert done.entries["copier"].record.outcome["steps"] == 2
    (check,) = (one for one in worker.requests if one.stage == "copier" and hasattr(one, "seeds"))
    assert check.prompts == tuple(PROMPTS) and check.steps == 1 and len(check.guidance) == 3
    measured = done.plan.draws["gate.pictures"]
    assert not set(check.seeds) & set(measured.seeds)
    assert done.plan.draws["copier.base"].seeds == check.seeds
    assert not {"check", "ideal"} & {path.name for path in done.entries["copier"].folder.iterdir()}
    missed = gate | {"median_limit": 0.0, "single_limit": 0.0}
    never = replace(asked, recipe=recipe([copier, missed], "copier"))
    whole = execute(never, tmp_path / "data", FakeWorker())
    assert whole.entries["copier"].record.outcome["steps"] == 9


def test_two_data_sets_have_captions_of_their_own(tmp_path):
    given = {
        "screenshots": pictures(tmp_path / "screenshots", 30, 60),
        "renders": pictures(tmp_path / "renders", 130, side=2 * SIDE),
    }
    (tmp_path / "screenshots" / "2.txt").write_text("a street")
    (tmp_path / "renders" / "1.txt").write_text("white background")
    asked = request(tmp_path, TWO_SETS, given)
    worker = FakeWorker()
    done = execute(asked, tmp_path / "data", worker)
    assert [one.captions for one in worker.requests] == [("", "a street"), ("white background",)]
    assert [path for path, _ in worker.requests[1].base] == [done.entries["style"].path(LORA)]
    asked.out.mkdir()
    assert publish_run(done)["subject"].name == "mine.safetensors"


def test_one_folder_holds_the_captions_of_two_sets_in_folders_of_their_names(tmp_path):
    given = {
        "screenshots": pictures(tmp_path / "screenshots", 30, 60),
        "renders": pictures(tmp_path / "renders", 130, side=2 * SIDE),
    }
    for place, text in (("1", "of neither"), ("screenshots/1", "a street"), ("renders/1", "a lamp")):
        file = tmp_path / "texts" / f"{place}.txt"
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(text)
    asked = replace(request(tmp_path, TWO_SETS, given), captions=tmp_path / "texts")
    style, subject = (caption_texts(asked, stage) for stage in TWO_SETS.trainings())
    assert (style, subject) == (("a street", ""), ("a lamp",))
    (tmp_path / "texts" / "renders" / "1.txt").unlink()
    (tmp_path / "texts" / "renders").rmdir()
    assert caption_texts(asked, TWO_SETS.stage("subject")) == ("of neither",)


def test_an_edited_picture_takes_the_caption_in_the_folder_of_its_originals(tmp_path):
    reading = recipe(
        [train("copier", "a"), train("lora", "b", "copier", captions={"policy": "files"})],
        "lora",
    )
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "1.txt").write_text("a star")
    given = {"a": pictures(tmp_path / "a", 30), "b": Edit("grayscale")}
    asked = replace(request(tmp_path, reading, given), captions=tmp_path / "texts")
    assert caption_texts(asked, reading.stage("lora")) == ("a star",)


def test_the_example_of_the_docs_is_a_recipe():
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    found = recipe_from_text(example, "docs/recipes.md")
    assert [one.name for one in found.changed] == ["b1", "b2"]
    for kind in STAGE_KINDS:
        assert f"| `{kind}` |" in text


@pytest.mark.parametrize("name", ["copier-1", "lora-2"])
def test_another_picture_of_one_pair_leaves_the_others_trainings_alone(tmp_path, name):
    given = two_originals(tmp_path)
    asked = request(tmp_path, SEVERAL, given)
    before = execute(asked, tmp_path / "data", FakeWorker())
    number = name[-1]
    moved = {**given, f"a{number}": pictures(tmp_path / "other", 150)}
    after = execute(replace(asked, pictures=moved), tmp_path / "data", FakeWorker())
    made = {one.stage.name for one in after.stages if not one.reused and one.stage.kind == "train"}
    assert made == {f"copier-{number}", f"lora-{number}"}
    assert len(before.stages) == len(after.stages)


def test_a_gate_after_the_evaluation_does_not_tell_which_lora_is_the_copier(tmp_path):
    stages = list(PAIRED_ON_A_LOOK.stages)
    late = replace(PAIRED_ON_A_LOOK, stages=(*(s for s in stages if s.name != "gate"), stages[2]))
    given = {"a": pictures(tmp_path / "one", 30), "b": pictures(tmp_path / "two", 90)}
    planned = plan(request(tmp_path, late, given, look=tmp_path / "checkpoint.safetensors"), file_digest)
    assert "original" not in planned["evaluate"].needs and planned.stages[2].name == "look"


def test_a_lora_file_that_was_changed_since_it_was_planned_is_not_stored_as_the_other(tmp_path):
    given = {"a": pictures(tmp_path / "one", 30), "b": pictures(tmp_path / "two", 90)}
    look = tmp_path / "look.safetensors"
    weights = random_lora(5, 2)
    write_lora(look, weights, network_metadata(weights, name="look", family=Family.SD1), dtype="fp32")
    asked = request(tmp_path, PAIRED_ON_A_LOOK, given, look=look)
    planned = plan(asked, file_digest)
    look.write_bytes(look.read_bytes()[:-4] + b"1234")
    store = StageStore(tmp_path / "stages")
    with pytest.raises(BadInput, match="was changed while the run began"):
        run(asked, planned, store, FakeWorker, FakeWorker().train, ignore, CancelToken())
    assert {entry.record.name for entry in store.entries()} == {"a", "b"}


def test_the_report_is_about_the_result_and_names_other_evaluations_and_gates(tmp_path):
    first = EvaluateStage("early", "lora-1", PROMPTS, pictures="b1", seeds=(11,), sampling_steps=2)
    what = replace(SEVERAL, stages=(*SEVERAL.stages[:3], first, *SEVERAL.stages[3:]))
    given = two_originals(tmp_path)
    asked = request(tmp_path, what, given)
    done = execute(asked, tmp_path / "data", FakeWorker())
    told = report_data([done], [{}])
    assert told.notes[-1] == "The evaluation 'evaluate' is shown; there are others: early."
    assert told.notes[0].startswith("mean adds 2 LoRAs; the cosines of their changes are ")
    shown = told.results[0].strip.figures.at(1.0).effect
    assert shown == pytest.approx(done.entries["evaluate"].record.outcome["lora"][3]["effect"])
    labels = [row.label for row in seed_table([done, done]).rows]
    assert labels[:2] == ["Gate 'gate-1': median distance", "Gate 'gate-2': median distance"]


def test_two_stages_whose_files_would_have_one_name_are_published_side_by_side(tmp_path):
    stages = [train("grayscale-m", "a"), train("m", "b"), train("lora", "b", "grayscale-m")]
    given = {"a": pictures(tmp_path / "one", 30), "b": Edit("grayscale")}
    asked = request(tmp_path, recipe(stages, "lora"), given)
    asked.out.mkdir()
    published = publish_run(execute(asked, tmp_path / "data", FakeWorker()))
    names = {name: path.name for name, path in published.items() if path.suffix == ".safetensors"}
    assert names == {
        "grayscale-m": "grayscale-m.safetensors",
        "m": "grayscale-m-2.safetensors",
        "lora": "grayscale.safetensors",
    }
