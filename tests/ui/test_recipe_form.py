"""The form of a recipe: every field is in it, goes through it unharmed, and shows where it matters."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest

from copier.codec import builtin_recipes, recipe_to_json
from copier.errors import BadInput
from copier.fields import FIELDS
from copier.recipe import (
    STAGE_KINDS,
    BaseLora,
    CombineStage,
    FileStage,
    PictureSet,
    RankPolicy,
    Recipe,
    ResizeStage,
    TrainStage,
    WeightedLora,
)
from copier.ui.leaves import Shape, elem_id, understood, written
from copier.ui.recipe_form import (
    LEAVES,
    first_stage,
    form_values,
    kind_of,
    paths_of,
    visible_paths,
    with_all_trainings,
    with_form,
)

RECIPES = builtin_recipes()


def every_kind() -> Recipe:
    """A recipe with a stage of each kind."""
    one = RECIPES["copier-quick-pocket"]
    more = (
        CombineStage("sum", (WeightedLora("lora", 0.5), WeightedLora("copier", -0.25))),
        ResizeStage("small", "sum", RankPolicy(rank=4)),
    )
    difference = RECIPES["difference-svd-pocket"].stage("lora")
    return dataclasses.replace(
        one,
        stages=(
            FileStage("look"),
            *one.stages,
            dataclasses.replace(difference, name="apart", minuend="lora", subtrahend="copier"),
            *more,
        ),
    )


def headings() -> set[tuple[str, str]]:
    """Fields that are specs themselves: the form has their fields in their place, and stages one by one."""
    found = {("Recipe", "stages")}
    for spec in {*STAGE_KINDS.values(), *(type(TrainStage("t", "a").training),)}:
        for name, hint in typing.get_type_hints(spec).items():
            if dataclasses.is_dataclass(hint):
                found.add((spec.__name__, name))
    return found


def test_every_field_of_the_table_is_in_the_form_and_nothing_else() -> None:
    covered = [pair for leaf in LEAVES.values() for pair in leaf.specs]
    table = {(spec, name) for spec, known in FIELDS.items() for name in known}
    assert set(covered) == table - headings()
    assert headings() <= table
    parts = {spec.__name__ for spec in (BaseLora, WeightedLora, PictureSet)}
    own = [pair for leaf in LEAVES.values() for pair in leaf.specs[:1]]
    assert parts.isdisjoint(spec for spec, _ in own)


def test_every_field_says_its_help_its_unit_and_its_bounds() -> None:
    for leaf in LEAVES.values():
        known = leaf.field
        assert known.help in leaf.info, leaf.path
        assert not known.unit or known.unit in leaf.info, leaf.path
        if known.maximum is not None:
            assert "to" in leaf.info.removeprefix(known.help), leaf.path


def test_element_ids_are_unique_and_made_of_the_path() -> None:
    ids = [elem_id(path) for path in LEAVES]
    assert len(set(ids)) == len(ids)
    assert elem_id("train.training.steps") == "copier_train__training__steps"


@pytest.mark.parametrize("recipe", [*RECIPES.values(), every_kind()], ids=[*RECIPES, "every kind"])
def test_what_the_form_shows_is_taken_back_unchanged(recipe: Recipe) -> None:
    for stage in recipe.stages:
        values = form_values(recipe, stage.name)
        assert with_form(recipe, stage.name, values) == (recipe, stage.name, ())


def other_value(path: str, value: Any) -> Any:
    """A value that differs and that the field takes."""
    leaf = LEAVES[path]
    if leaf.shape is Shape.CHOICE:
        return next(one for one in leaf.choices if one != value)
    if leaf.shape is Shape.FLAG:
        return not value
    if leaf.shape in (Shape.WHOLE, Shape.NUMBER):
        low, high = leaf.field.minimum or 0, leaf.field.maximum or 1
        return next(one for one in (low, high, low + (64 if "resolution" in path else 1)) if one != value)
    return {"numbers": "0.25, 0.75", "lines": "one\ntwo", "parts": "copier = 0.5", "text": "other"}[
        leaf.shape.value
    ]


def test_each_field_reaches_its_own_place_in_the_recipe_and_no_other() -> None:
    recipe = every_kind()
    reached = set()
    for number, stage in enumerate(recipe.stages):
        before = form_values(recipe, stage.name)
        for path in (*paths_of("recipe"), *paths_of(kind_of(stage))) if number else before:
            if path in reached:
                continue
            given = {path: other_value(path, before[path])}
            changed, name, problems = with_form(recipe, stage.name, given)
            if problems:  # several fields have to agree; each is said beside itself
                assert {one.path for one in problems} == {path}
                continue
            after = form_values(changed, name)
            assert [one for one in before if after[one] != before[one]] == [path]
            others = [one for one in range(len(recipe.stages)) if one != number]
            assert [changed.stages[one] for one in others] == [recipe.stages[one] for one in others]
            reached.add(path)
    assert len(reached) > 0.6 * len(LEAVES)


def test_each_problem_is_said_beside_its_own_field() -> None:
    recipe = RECIPES["copier-quick"]
    given = {
        "train.training.steps": 0,
        "train.training.rank": None,
        "train.training.alpha": "much",
        "train.training.batch_size": 1.5,
        "train.training.warmup_steps": 3,
    }
    same, _, problems = with_form(recipe, "copier", given)
    assert same == recipe
    assert {one.path for one in problems} == set(given) - {"train.training.warmup_steps"}


def test_fields_that_contradict_each_other_blame_the_one_that_was_changed() -> None:
    recipe = RECIPES["copier-quick"]
    _, _, problems = with_form(recipe, "copier", {"train.training.warmup_steps": 900})
    assert [one.path for one in problems] == ["train.training.warmup_steps"]
    _, _, problems = with_form(recipe, "copier", {"recipe.result": "nowhere"})
    assert [one.path for one in problems] == ["recipe.result"]


def test_a_stage_that_is_renamed_stays_the_result() -> None:
    recipe = RECIPES["copier-quick"]
    alone = dataclasses.replace(recipe, stages=recipe.stages[:1], result="copier")
    changed, name, problems = with_form(alone, "copier", {"train.name": "first"})
    assert (problems, name, changed.result) == ((), "first", "first")


def test_fields_show_where_they_matter() -> None:
    recipe = RECIPES["copier-quick-pocket"]
    shown = visible_paths(recipe, "copier")
    assert "train.training.captions.texts" in shown and "gate.median_limit" not in shown
    assert "train.training.min_snr_gamma" not in shown and "train.training.fp8_base" not in shown
    changed, _, _ = with_form(recipe, "copier", {"train.training.loss_weighting": "min_snr"})
    assert "train.training.min_snr_gamma" in visible_paths(changed, "copier")
    by_scripts, _, _ = with_form(recipe, "copier", {"recipe.trainer": "sd-scripts"})
    assert "train.training.fp8_base" in visible_paths(by_scripts, "copier")
    by_text = visible_paths(RECIPES["erase-pocket"], "lora")
    assert {"train.concept.neutral", "train.training.steps"} < by_text
    assert not {"train.pictures", "train.training.target", "train.training.captions.policy"} & by_text
    assert "train.concept.neutral" not in visible_paths(RECIPES["move-pocket"], "lora")
    assert "train.concept.action" in shown and "train.concept.target" not in shown
    assert "train.training.eta" in visible_paths(RECIPES["semantic-pair-pocket"], "lora")


def test_no_field_is_hidden_for_good() -> None:
    seen: set[str] = set()
    for recipe in (every_kind(), *RECIPES.values()):
        for trainer in ("builtin", "sd-scripts"):
            for policy in ("empty", "varied", "files"):
                for stage in recipe.stages:
                    seen |= visible_paths(recipe, stage.name)
                    given: dict[str, Any] = {"recipe.trainer": trainer}
                    if isinstance(stage, TrainStage) and not stage.concept.by_text:
                        texts = "p\nq" if policy == "varied" else ""
                        given |= {
                            "train.training.captions.policy": policy,
                            "train.training.captions.texts": texts,
                            "train.training.captions.shuffle": True,
                            "train.training.conv_rank": 2,
                            "train.training.loss_weighting": "min_snr",
                        }
                    for method, threshold in (
                        (("sv_ratio", 2), ("rank", 0)) if hasattr(stage, "ranks") else ()
                    ):
                        kind = kind_of(stage)
                        more = {f"{kind}.ranks.method": method, f"{kind}.ranks.threshold": threshold}
                        changed, _, _ = with_form(recipe, stage.name, more)
                        seen |= visible_paths(changed, stage.name)
                    changed, name, problems = with_form(recipe, stage.name, given)
                    known = ("prompt", "which sd-scripts does not have")
                    assert not problems or any(one in problems[0].message for one in known), problems
                    seen |= visible_paths(changed, name)
                    for path in ("train.training.pair_mask", "train.check_every"):
                        if isinstance(stage, TrainStage):
                            changed, name, _ = with_form(recipe, stage.name, {path: 1})
                            seen |= visible_paths(changed, name)
    assert seen == set(LEAVES)


def test_the_essential_numbers_can_be_the_same_for_every_training() -> None:
    recipe = RECIPES["copier-quick-pocket"]
    same = with_all_trainings(recipe, "copier")
    assert {one.training.steps for one in same.trainings()} == {200}
    assert {one.training.steps for one in recipe.trainings()} == {200, 60}
    assert recipe_to_json(same)["stages"][0] == recipe_to_json(recipe)["stages"][0]


def test_lists_are_written_one_a_line_and_read_again() -> None:
    base = LEAVES["train.base"]
    parts = [{"lora": "copier", "multiplier": 0.5}, {"lora": "look", "multiplier": -1.0}]
    assert written(base, parts) == "copier = 0.5\nlook = -1"
    assert understood(base, written(base, parts)) == parts
    assert understood(LEAVES["recipe.pictures"], "a\nb = a\n") == [{"name": "a"}, {"name": "b", "of": "a"}]
    with pytest.raises(BadInput, match="number"):
        understood(base, "copier = much")


def test_the_first_training_is_shown_first() -> None:
    assert first_stage(every_kind()) == "copier"
