"""Which sets of pictures a recipe is given in the tab, and what the page says about them. Pure: no gradio.

The tab has two places for pictures. The first takes the recipe's originals; the second the same pictures with
one thing changed, or a second set of originals. A recipe by text alone needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from copier.errors import BadInput
from copier.recipe import PictureSet, Recipe
from copier.ui import words

FIRST, SECOND = "first", "second"
"""The places."""


def caption_key(place: str, path: Path | str) -> str:
    """Under which a page remembers the caption of a picture: it may be in both places, with two captions."""
    return f"{place}:{path}"


@dataclass(frozen=True)
class Pictures:
    """What the user has put in: into the first place, and into the second; files in the data directory.

    ``captions`` are texts by ``caption_key``.
    """

    originals: tuple[Path, ...] = ()
    edited: tuple[Path, ...] = ()
    captions: Mapping[str, str] = field(default_factory=dict)

    def caption(self, place: str, path: Path) -> str:
        """The caption of a picture in a place; "" where it has none."""
        return self.captions.get(caption_key(place, path), "")


@dataclass(frozen=True)
class PictureSets:
    """The names of the sets in the two places; "" for none.

    Attributes:
        first: originals.
        second: other originals, which are no changes of the first.
        changed: changes of ``first``; there is one of the two at most.
        views: of the originals, as the recipe trains on them; None: as they are.
        many: ``first`` is meant to have several pictures.
    """

    first: str = ""
    second: str = ""
    changed: str = ""
    views: PictureSet | None = None
    many: bool = False

    @property
    def texts(self) -> tuple[words.SetWords, words.SetWords]:
        """What is said of the two places."""
        if self.changed:
            first = words.EACH_ORIGINAL if self.many else words.AN_ORIGINAL
            return first, words.AN_EDITED
        return words.set_words(self.first), words.set_words(self.second)

    def of(self, pictures: Pictures) -> tuple[tuple[str, str, tuple[Path, ...]], ...]:
        """The place, the name and the pictures of each set of originals."""
        places = ((FIRST, self.first, pictures.originals), (SECOND, self.second, pictures.edited))
        return tuple(one for one in places if one[1])


def picture_sets(recipe: Recipe) -> PictureSets:
    """The sets that ``recipe`` is given.

    Raises:
        BadInput: they are more than the two that the tab has places for.
    """
    originals = [one for one in recipe.given if not one.of]
    changed = [one.name for one in recipe.given if one.of]
    if len(originals) + len(changed) > 2:
        names = ", ".join(one.name for one in recipe.given)
        raise BadInput(
            f"the recipe has the sets of pictures {names}; the tab fills two: use `copier run` for this "
            "recipe"
        )
    if not originals:
        return PictureSets()
    names = [one.name for one in originals]
    return PictureSets(
        first=names[0],
        second=names[1] if names[1:] else "",
        changed=changed[0] if changed else "",
        views=next((one for one in recipe.pictures if one.views and not one.of), None),
        many=originals[0].one_by_one or not changed,
    )
