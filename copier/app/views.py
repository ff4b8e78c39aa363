"""The crops and zooms that a recipe will train on, to be looked at before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from copier.app.pair_preview import edited
from copier.errors import BadInput, UnknownName
from copier.evaluation.data_uri import data_uri
from copier.images.framing import View, seen, views_of
from copier.images.pairs import check_pair, check_size, read_picture
from copier.pipeline.results import check_folder, prepare_folder
from copier.recipe import PictureSet, Recipe
from copier.request import Edit
from copier.temporary import create_file


def views_set(recipe: Recipe, name: str | None = None) -> PictureSet:
    """The set of views of that name, or the recipe's first.

    Raises:
        BadInput, UnknownName: the recipe has no set of views, or none of that name.
    """
    found = {one.name: one for one in recipe.pictures if one.views}
    if not found:
        raise BadInput(f"the recipe {recipe.name!r} makes no views of pictures: take framing, or your own")
    if name is not None and name not in found:
        raise UnknownName(f"set of views of the recipe {recipe.name!r}", name, found)
    return found[name] if name is not None else next(iter(found.values()))


def write_views(
    recipe: Recipe, pictures: Sequence[Path], out: Path, name: str | None = None
) -> tuple[tuple[Path, View], ...]:
    """Write what each view of the recipe's set shows of each picture, as ``<picture>-<number>.png``.

    Raises:
        BadPicture, BadInput: a picture cannot be trained on, or a file is there already; nothing was written
            before all pictures were read.
    """
    spec = views_set(recipe, name)
    images = [read_picture(path) for path in pictures]
    for image, path in zip(images, pictures, strict=True):
        check_size(image, path.name)
    check_folder(out, report=False)
    prepare_folder(out)
    written = []
    for place, (image, path) in enumerate(zip(images, pictures, strict=True)):
        for number, view in enumerate(views_of(spec, image.size, place), start=1):
            target, content = out / f"{path.stem}-{number}.png", BytesIO()
            seen(image, view).save(content, format="PNG")
            if not create_file(target, content.getvalue()) and target.read_bytes() != content.getvalue():
                raise BadInput(f"{target} exists and shows something else: choose another folder with --out")
            written.append((target, view))
    return tuple(written)


@dataclass(frozen=True)
class PairOfViews:
    """What one view shows of A and of B, as data URIs (``b`` is "" where there is no B), and where it is."""

    place: str
    a: str
    b: str


def look_at_views(spec: PictureSet, a: Path, b: Path | Edit | None, side: int) -> tuple[PairOfViews, ...]:
    """The views that a set of originals has of its first pair, their longer sides ``side`` px at most.

    Raises:
        BadPicture, BadInput: a picture cannot be trained on or B is of another size, or the edit's values are
            out of bounds.
    """
    first = read_picture(a)
    check_size(first, a.name)
    second = None if b is None else edited(first, b)
    if second is not None:
        check_pair(first, second, f" of {a.name}")
    return tuple(
        PairOfViews(
            str(view),
            data_uri(seen(first, view), side),
            "" if second is None else data_uri(seen(second, view), side),
        )
        for view in views_of(spec, first.size, 0)
    )
