"""Captions as the tab's table has them: a row a picture, with what its training is told. Pure: no gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from copier.errors import BadInput
from copier.recipe import CaptionPolicy, CaptionSpec, Recipe
from copier.ui.picture_sets import FIRST, Pictures, caption_key, picture_sets


@dataclass(frozen=True)
class CaptionRow:
    """A picture of a set, its caption, and what of it the training is told; None: no training reads it."""

    set_name: str
    place: str
    picture: Path
    text: str
    told: str | None

    @property
    def key(self) -> str:
        """Under which the page remembers its caption."""
        return caption_key(self.place, self.picture)


def caption_rows(recipe: Recipe, pictures: Pictures) -> tuple[CaptionRow, ...]:
    """The rows of all sets of originals; an edited picture has its original's caption.

    Raises:
        BadInput: as ``picture_sets``.
    """
    rows: list[CaptionRow] = []
    for place, name, paths in picture_sets(recipe).of(pictures):
        texts = [pictures.caption(place, path) for path in paths]
        spec = reading(recipe, name)
        told: Sequence[str | None] = [None] * len(paths) if spec is None else spec.reduced(texts)
        rows += (CaptionRow(name, place, *one) for one in zip(paths, texts, told, strict=True))
    return tuple(rows)


def reading(recipe: Recipe, name: str) -> CaptionSpec | None:
    """How the first training that reads captions of the originals ``name`` does that; None: none does."""
    for stage in recipe.trainings():
        if stage.concept.by_text or stage.training.captions.policy is not CaptionPolicy.FILES:
            continue
        given = recipe.given_for(stage.pictures)
        if name in (given, recipe.original_of(given)):
            return stage.training.captions
    return None


def caption_sets(
    recipe: Recipe, pictures: Pictures, partners: Sequence[Path] = ()
) -> Mapping[str, Mapping[str, str]]:
    """The captions that a run reads, by set and by the picture's name; {} where there is none.

    ``partners`` are the user's own edited pictures, in the order of the originals.

    Raises:
        BadInput: as ``by_set``.
    """
    rows = [one for one in caption_rows(recipe, pictures) if one.told is not None]
    if not any(one.text.strip() for one in rows):
        return {}
    found = by_set(rows)
    sets = picture_sets(recipe)
    if sets.changed and partners:
        texts = [pictures.caption(FIRST, path) for path in pictures.originals]
        found[sets.changed] = {path.stem: text for path, text in zip(partners, texts, strict=True)}
    return found


def by_set(rows: Sequence[CaptionRow]) -> dict[str, dict[str, str]]:
    """The captions by set and by the picture's name, as caption files have them.

    Raises:
        BadInput: two pictures of a set have one name, and captions that differ.
    """
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        known = found.setdefault(row.set_name, {})
        if known.setdefault(row.picture.stem, row.text) != row.text:
            raise BadInput(
                f"two pictures of {row.set_name!r} are called {row.picture.stem} and have two captions: give "
                "one of them another name"
            )
    return found
