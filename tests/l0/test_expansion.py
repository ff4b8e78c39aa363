"""Recipes for any number of pictures, and the sets that are made from others."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from copier.codec import builtin_recipes, recipe_from_json, recipe_to_json
from copier.errors import BadInput, UnknownName
from copier.expansion import written_out
from copier.recipe import (
    BaseLora,
    CombineStage,
    EvaluateStage,
    PictureSet,
    Recipe,
    TrainStage,
    WeightedLora,
    with_control,
)
from copier.request import Edit, Generated, PictureFiles, RunRequest, in_epochs

SEVERAL = builtin_recipes()["several-originals-pocket"]
FRAMING = builtin_recipes()["framing-pocket"]


def request(recipe: Recipe, count: int) -> RunRequest:
    files = PictureFiles(tuple(Path(f"{i}.png") for i in range(count)))
    return RunRequest(recipe, Path("model"), {"a": files, "b": Edit("grayscale")}, Path("out"))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_pair_gets_its_own_trainings_and_the_sum_takes_all(count: int) -> None:
    recipe = written_out(SEVERAL, {"a": count, "b": count})
    trained = {stage.name: stage for stage in recipe.trainings()}
    assert len(trained) == 2 * count
    for number in range(1, count + 1):
        second = trained[f"lora-{number}"]
        assert second.base == (BaseLora(f"copier-{number}"),)
        part = recipe.picture_set(second.pictures)
        assert (part.of, part.part_of, part.number) == (f"a-{number}", "b", number)
        assert second.training == SEVERAL.stage("lora").training  # type: ignore[union-attr]
    mean = recipe.stage("mean")
    assert isinstance(mean, CombineStage)
    assert [term.lora for term in mean.terms] == [f"lora-{i}" for i in range(1, count + 1)]
    assert mean.weights == pytest.approx((1 / count,) * count)
    assert replace(mean, average=False).weights == (1.0,) * count
    assert recipe.result == SEVERAL.result
    assert recipe.stage("evaluate") == SEVERAL.stage("evaluate")


def test_what_is_written_out_is_a_recipe_like_any_other_and_stays_as_it_is() -> None:
    recipe = written_out(SEVERAL, {"a": 3, "b": 3})
    assert written_out(recipe, {"a": 3, "b": 3}) == recipe
    assert recipe_from_json(recipe_to_json(recipe)) == recipe
    for other in builtin_recipes().values():
        if other.name not in ("several-originals", "several-originals-pocket"):
            assert written_out(other, {}) == other


def test_the_control_has_all_pictures_that_go_one_by_one_and_the_views_as_they_are() -> None:
    control = with_control(written_out(SEVERAL, {"a": 2, "b": 2})).stage("control")
    assert isinstance(control, TrainStage)
    assert (control.pictures, control.base) == ("b", ())
    framed = with_control(FRAMING).stage("control")
    assert isinstance(framed, TrainStage)
    assert framed.pictures == "views-b"


def test_an_evaluation_of_one_pair_has_a_control_on_that_pair() -> None:
    alone = EvaluateStage("alone", "lora", ("p",))
    recipe = written_out(replace(SEVERAL, stages=(*SEVERAL.stages, alone)), {"a": 2, "b": 2})
    controlled = with_control(recipe)
    controls = {one.name: one.control for one in controlled.stages if isinstance(one, EvaluateStage)}
    trained = {one.name: one.pictures for one in controlled.trainings()}
    assert {name: trained[control] for name, control in controls.items()} == {
        "evaluate": "b",
        "alone-1": "b-1",
        "alone-2": "b-2",
    }


def test_a_result_for_each_picture_is_refused() -> None:
    with pytest.raises(BadInput, match=r"'lora'.*each picture of 'a'.*combines"):
        written_out(replace(SEVERAL, result="lora"), {"a": 2, "b": 2})


def test_an_evaluation_of_a_single_lora_is_written_out_on_its_own_pair() -> None:
    alone = EvaluateStage("alone", "lora", ("p",))
    recipe = written_out(replace(SEVERAL, stages=(*SEVERAL.stages, alone)), {"a": 2, "b": 2})
    second = recipe.stage("alone-2")
    assert isinstance(second, EvaluateStage)
    assert (second.lora, second.pictures) == ("lora-2", "b-2")


def test_a_request_counts_its_pictures() -> None:
    asked = request(SEVERAL, 4).written_out()
    assert len(list(asked.recipe.trainings())) == 8
    assert asked.files_of("a-3") == PictureFiles((Path("2.png"),))
    assert asked.edit_of("b-3") == Edit("grayscale")
    drawn = replace(request(SEVERAL, 1), pictures={"a": Generated("p"), "b": Edit("grayscale")})
    assert drawn.written_out().files_of("a-1") is None
    with pytest.raises(BadInput, match=r"picture 3 of 'a', which has 2"):
        request(asked.recipe, 2)


@pytest.mark.parametrize("drawn", [False, True], ids=["files", "drawn"])
@pytest.mark.parametrize("recipe", [SEVERAL, FRAMING], ids=lambda recipe: recipe.name)
def test_epochs_are_counted_by_the_pictures_that_each_training_has_in_the_end(
    recipe: Recipe, drawn: bool
) -> None:
    asked = request(recipe, 3)
    if drawn:
        asked = replace(asked, pictures={**asked.pictures, "a": Generated("a star", 1)})
    counted = in_epochs(asked, 30, repeats=2).written_out()
    for stage in counted.recipe.trainings():
        pictures = counted.count_of(stage.pictures)
        assert stage.training.steps == 30 * math.ceil(pictures * 2 / stage.training.batch_size), stage.name


def test_a_training_by_text_alone_has_no_epochs() -> None:
    by_text = RunRequest(builtin_recipes()["erase-pocket"], Path("model"), {}, Path("out"))
    with pytest.raises(BadInput, match="'lora' is by text alone"):
        in_epochs(by_text, 2)


def test_a_file_comes_as_often_as_there_are_views_of_it() -> None:
    assert request(FRAMING, 2).count_of("views-b") == 16
    drawn = replace(request(FRAMING, 1), pictures={"a": Generated("p"), "b": Edit("grayscale")})
    assert (drawn.files_of("views-b"), drawn.count_of("views-b")) == (None, 8)
    files = request(FRAMING, 2).files_of("views-b")
    assert files is not None
    assert [path.name for path in files.paths] == ["0.png"] * 8 + ["1.png"] * 8


VIEWS = PictureSet("views-a", part_of="a", views=4)
REFUSED = {
    "a seed of its own": PictureSet("views-b", "views-a", part_of="b", views=4, views_seed=2),
    "another number of views": PictureSet("views-b", "views-a", part_of="b", views=5),
    "no pair": PictureSet("views-b", part_of="b", views=4),
    "a pair of another set": PictureSet("views-b", "a", part_of="b", views=4),
    "nothing made": PictureSet("views-b", "views-a", part_of="b"),
    "made from nothing": PictureSet("views-b", "views-a", views=4),
    "one by one": PictureSet("views-b", "views-a", part_of="b", views=4, one_by_one=True),
}


@pytest.mark.parametrize("why", REFUSED)
def test_sets_of_pairs_are_made_in_the_same_way(why: str) -> None:
    sets = (PictureSet("a"), PictureSet("b", "a"), VIEWS)
    stages = (TrainStage("lora", "views-a"),)
    good = PictureSet("views-b", "views-a", part_of="b", views=4)
    Recipe("r", "R", stages, "lora", pictures=(*sets, good))
    with pytest.raises(BadInput):
        Recipe("r", "R", stages, "lora", pictures=(*sets, REFUSED[why]))
    with pytest.raises(UnknownName):
        Recipe("r", "R", stages, "lora", pictures=(VIEWS, *sets[:2]))


def test_a_made_set_is_not_asked_for() -> None:
    with pytest.raises(UnknownName, match="views-a"):
        replace(request(FRAMING, 1), pictures={**request(FRAMING, 1).pictures, "views-a": Generated("p")})


def test_weights_of_an_average_are_those_of_the_terms_over_their_number() -> None:
    terms = (WeightedLora("one", 1.0), WeightedLora("two", -0.5))
    assert CombineStage("mean", terms, average=True).weights == (0.5, -0.25)
