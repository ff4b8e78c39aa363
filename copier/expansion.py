"""Recipes for any number of pictures: what is said once of a set that goes one by one, written out.

    a (one by one), b of a      ->  a, b, and for each picture i: a-i part of a, b-i of a-i, part of b
    every stage that needs it   ->  one for each picture, with its number: copier-1, lora-1, copier-2, ...
    a sum that needs those      ->  the same sum, with a term for each picture

A recipe for several originals is so one for each number of them, and its outcome a recipe like any other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from copier.errors import BadInput
from copier.recipe import (
    CombineStage,
    GateStage,
    PictureSet,
    Recipe,
    StageSpec,
    TrainStage,
    WeightedLora,
)


def written_out(recipe: Recipe, counts: Mapping[str, int]) -> Recipe:
    """``recipe`` with every set that goes one by one as its single pictures; itself where there is none.

    Args:
        counts: the number of pictures of each set that a run is given, by name.

    Raises:
        BadInput: its result would be a LoRA for each picture: no sum adds them.
    """
    for one in recipe.pictures:
        if one.one_by_one:
            recipe = _one_by_one(recipe, one.name, counts[one.name])
    return recipe


def _one_by_one(recipe: Recipe, name: str, count: int) -> Recipe:
    """``recipe`` with the stages on the set of originals ``name`` written out for each of its pictures."""
    sets = {one.name for one in recipe.pictures if name in (one.name, one.of)}
    single = _single_stages(recipe, sets)
    if recipe.result in single:
        raise BadInput(
            f"the recipe's result {recipe.result!r} would be a LoRA for each picture of {name!r}: add a "
            "stage that combines them, and make that the result"
        )
    changing = sets | single
    numbers = range(1, count + 1)
    whole = tuple(replace(one, one_by_one=False) if one.name == name else one for one in recipe.pictures)
    parts = tuple(_part(one, number, changing) for number in numbers for one in whole if one.name in sets)
    stages: list[StageSpec] = []
    for stage in recipe.stages:
        if stage.name in single:
            stages += [_numbered(stage, number, changing) for number in numbers]
        else:
            stages.append(_with_each(stage, numbers, single) if isinstance(stage, CombineStage) else stage)
    return replace(recipe, pictures=(*whole, *parts), stages=tuple(stages))


def _single_stages(recipe: Recipe, sets: Collection[str]) -> set[str]:
    """The stages that there will be for each picture: all that need the sets, but for the sums."""
    found: set[str] = set()
    for stage in recipe.stages:
        direct = isinstance(stage, (TrainStage, GateStage)) and stage.pictures in sets
        if not isinstance(stage, CombineStage) and (direct or found.intersection(stage.references)):
            found.add(stage.name)
    return found


def _part(one: PictureSet, number: int, changing: Collection[str]) -> PictureSet:
    of = _name(one.of, number, changing)
    return PictureSet(_name(one.name, number, changing), of, part_of=one.name, number=number)


def _name(name: str, number: int, changing: Collection[str]) -> str:
    return f"{name}-{number}" if name in changing else name


def _numbered(stage: StageSpec, number: int, changing: Collection[str]) -> StageSpec:
    """The stage for one picture: every name of a set or a stage that is written out gets its number."""
    named = ("name", "pictures", "lora", "start", "control", "minuend", "subtrahend")
    changes: dict[str, Any] = {
        field.name: _name(getattr(stage, field.name), number, changing)
        for field in fields(stage)
        if field.name in named
    }
    if isinstance(stage, (TrainStage, GateStage)):
        changes["base"] = tuple(replace(one, lora=_name(one.lora, number, changing)) for one in stage.base)
    made: StageSpec = replace(stage, **changes)
    return made


def _with_each(stage: CombineStage, numbers: range, single: Collection[str]) -> CombineStage:
    return replace(stage, terms=tuple(_each(stage, numbers, single)))


def _each(stage: CombineStage, numbers: range, single: Collection[str]) -> Iterator[WeightedLora]:
    for term in stage.terms:
        if term.lora in single:
            yield from (replace(term, lora=f"{term.lora}-{number}") for number in numbers)
        else:
            yield term
