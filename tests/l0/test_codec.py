"""Recipes as JSON: there and back, older versions, mistakes, and single values set."""

from __future__ import annotations

import json

import pytest

from copier import codec
from copier.codec import (
    builtin_recipes,
    load_recipe,
    recipe_from_json,
    recipe_from_text,
    recipe_to_json,
    spec_from_json,
    with_value,
)
from copier.errors import BadInput, UnknownName
from copier.recipe import (
    CaptionPolicy,
    DifferenceStage,
    EvaluateStage,
    GateStage,
    LossWeighting,
    Precision,
    RankMethod,
    RankPolicy,
    Recipe,
    ResizeStage,
    Trainer,
    TrainingSpec,
    TrainStage,
    with_control,
)

QUICK = builtin_recipes()["copier-quick"]


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_a_recipe_survives_json_unchanged(name):
    recipe = builtin_recipes()[name]
    if any(isinstance(stage, EvaluateStage) for stage in recipe.stages):
        recipe = with_control(recipe)
    text = json.dumps(recipe_to_json(recipe))
    assert recipe_from_text(text, "test") == recipe
    assert json.dumps(recipe_to_json(recipe_from_text(text, "test"))) == text


def test_every_kind_of_stage_survives_json():
    trained = TrainingSpec(
        loss_weighting=LossWeighting.DEBIASED,
        optimiser_arguments=("betas=(0.9, 0.99)",),
        precision=Precision.FP16,
        fp8_base=True,
        masked_loss=True,
    )
    recipe = Recipe(
        "all",
        "All",
        (
            TrainStage("x", "a", training=trained),
            GateStage("gate", "x", ("p",), seeds=(1, 2)),
            DifferenceStage("d", "x", "x", 0.5, -2.0, RankPolicy(RankMethod.EXACT)),
            ResizeStage("r", "d", RankPolicy(RankMethod.SV_RATIO, threshold=3.0)),
            EvaluateStage("evaluate", "r", ("p",), weights=(-1.0, 2.0)),
        ),
        "r",
        explanation="ü “quoted”",
        trainer=Trainer.SD_SCRIPTS,
    )
    assert recipe_from_json(json.loads(json.dumps(recipe_to_json(recipe)))) == recipe


def test_built_in_recipes_are_found_by_name_and_files_by_path(tmp_path):
    assert load_recipe("copier-quick") == QUICK
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(recipe_to_json(QUICK)), encoding="utf-8")
    assert load_recipe(str(path)) == QUICK
    with pytest.raises(UnknownName, match=r"'copier-quik'.*'copier-quick'"):
        load_recipe("copier-quik")
    with pytest.raises(BadInput, match=r"absent\.json cannot be read"):
        load_recipe(str(tmp_path / "absent.json"))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="cannot be read"):
        load_recipe(str(path))


def test_an_unknown_field_offers_the_nearest_name():
    with pytest.raises(UnknownName, match=r"'learning_rat'; did you mean 'learning_rate'") as caught:
        spec_from_json(TrainingSpec, {"learning_rat": 1e-3})
    assert caught.value.near == ["learning_rate"]
    data = recipe_to_json(QUICK)
    data["stages"][0]["trainin"] = {}
    with pytest.raises(UnknownName, match="'training'"):
        recipe_from_json(data)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", "500", "steps is '500': give a whole number"),
        ("steps", 1.5, "steps is 1.5: give a whole number"),
        ("steps", True, "steps is True: give a whole number"),
        ("steps", None, "steps is None"),
        ("learning_rate", "fast", "learning_rate is 'fast': give a number"),
        ("learning_rate", False, "learning_rate is False: give a number"),
        ("learning_rate", 10**400, "401 digits"),
        ("text_encoder", 1, "text_encoder is 1: give true or false"),
        ("optimiser", "adam", r"'adam'; did you mean 'adamw'"),
        ("optimiser", ["adamw"], "optimiser"),
        ("captions", "none", "CaptionSpec is 'none': it must be a JSON object"),
        ("captions", {"policy": "varied", "texts": "abc"}, "texts is 'abc': give a list"),
        ("captions", {"policy": "varied", "texts": ["a", 1]}, "texts is 1: give a text"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(field, value, message):
    with pytest.raises(BadInput, match=message):
        spec_from_json(TrainingSpec, {field: value})


def test_whole_floats_are_numbers_of_steps_and_whole_numbers_are_rates():
    spec = spec_from_json(TrainingSpec, {"steps": 300.0, "learning_rate": 1, "alpha": 8})
    assert (spec.steps, spec.learning_rate, spec.alpha) == (300, 1.0, 8.0)
    assert [type(value) for value in (spec.steps, spec.learning_rate, spec.alpha)] == [int, float, float]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "this is no recipe"),
        ({"version": 2}, "version is 2, this program reads 1 to 1: update the program"),
        ({"version": 0}, "version is 0: it must be"),
        ({"version": True}, "version is True"),
        ({"version": "1"}, "version is '1'"),
        ({"stages": [{"kind": "trian", "name": "x"}]}, r"kind of stage 'trian'; did you mean 'train'"),
        ({"stages": [{"kind": ["train"], "name": "x"}]}, "kind of stage"),
        ({"stages": [{"kind": "train", "name": "x"}]}, "has neither pictures nor a concept"),
        ({"stages": ["train"]}, "a stage is 'train'"),
        ({"stages": {}}, "stages is {}: give a list"),
        ({"title": ""}, "title is empty"),
    ],
)
def test_a_file_that_is_no_recipe_of_ours_is_refused(change, message):
    with pytest.raises(BadInput, match=message):
        recipe_from_json({**recipe_to_json(QUICK), **change})


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "\x00", "[" * 100_000])
def test_text_that_is_no_json_is_refused_with_its_source(text):
    with pytest.raises(BadInput, match=r"mine\.json is not valid JSON"):
        recipe_from_text(text, "mine.json")


def test_json_that_is_no_object_is_refused():
    for text in ("[]", "null", "3", '"recipe"'):
        with pytest.raises(BadInput, match="this is no recipe"):
            recipe_from_text(text, "mine.json")


def test_older_versions_are_migrated_step_by_step(monkeypatch):
    def from_1(data):
        return {**data, "name": f"{data['name']}-2", "version": 2}

    def from_2(data):
        return {key if key != "heading" else "title": value for key, value in data.items()}

    monkeypatch.setattr(codec, "VERSION", 3)
    monkeypatch.setattr(codec, "MIGRATIONS", {1: from_1, 2: from_2})
    old = {**recipe_to_json(QUICK), "version": 1, "heading": "Old"}
    del old["title"]
    recipe = recipe_from_json(old)
    assert (recipe.name, recipe.title) == ("copier-quick-2", "Old")
    middle = {**old, "version": 2}
    assert recipe_from_json(middle).name == "copier-quick"
    assert old["version"] == 1
    assert recipe_to_json(recipe)["version"] == 3


def test_one_stage_is_set_by_its_name():
    changed = with_value(QUICK, "lora.training.steps=300")
    assert [s.training.steps for s in changed.trainings()] == [500, 300]
    assert with_value(changed, "lora.training.steps=500") == QUICK


def test_all_stages_of_a_kind_and_all_trainings_are_set_at_once():
    assert with_value(QUICK, "train.training.rank=4") == with_value(QUICK, "training.rank=4")
    assert [s.training.rank for s in with_value(QUICK, "training.rank=4").trainings()] == [4, 4]
    changed = with_value(QUICK, "gate.sampling_steps=7")
    assert [s.sampling_steps for s in changed.stages if isinstance(s, GateStage)] == [7, 7]


def test_fields_of_the_recipe_whole_specs_and_lists_are_set():
    assert with_value(QUICK, "name=mine").name == "mine"
    assert with_value(QUICK, "trainer=builtin").trainer.value == "builtin"
    captions = 'training.captions={"policy": "varied", "texts": ["x=1", "y"]}'
    changed = with_value(QUICK, captions)
    assert {s.training.captions.texts for s in changed.trainings()} == {("x=1", "y")}
    assert with_value(changed, "training.captions.shuffle=true").stages[0].training.captions.shuffle
    assert changed.stages[0].training.captions.policy is CaptionPolicy.VARIED
    weights = with_value(QUICK, "evaluate.weights=[-2, 2]").stage("evaluate")
    assert isinstance(weights, EvaluateStage)
    assert weights.weights == (-2.0, 2.0)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("training.steps", "write it as path=value"),
        ("=3", "write it as path=value"),
        ("training.step=3", r"'step'; did you mean 'steps'"),
        ("trainng.steps=3", r"'trainng'; did you mean 'train"),
        ("copier.trainings.steps=3", "'training'"),
        ("copier.training.steps.x=3", "steps has no field 'x'"),
        ("training.steps=0", "smallest allowed value is 1"),
        ("training.steps=many", "steps is 'many': give a whole number"),
        ("training.optimiser=sgd", "optimiser"),
        ("nme=x", r"'nme'; did you mean 'name'"),
        ("result=gate", "makes no LoRA"),
        ("evaluate.lora=copyer", "'copier'"),
    ],
)
def test_a_value_that_cannot_be_set_is_refused(assignment, message):
    with pytest.raises(BadInput, match=message):
        with_value(QUICK, assignment)
