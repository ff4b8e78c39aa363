"""Pictures of any size, made to fit what a recipe trains on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from copier.app.pair_preview import fitted_picture, picture_size
from copier.app.pictures import usual_side
from copier.app.service import check_checkpoint
from copier.app.settings import Settings
from copier.recipe import Recipe


def fitting_side(recipe: Recipe, checkpoint: Path) -> int:
    """The longer side of the pictures that the recipe trains on; its resolution, or what the checkpoint is
    used to."""
    resolution = max((one.training.resolution for one in recipe.trainings()), default=0)
    if resolution:
        return resolution
    return usual_side(check_checkpoint(checkpoint, recipe.trainer))


def fitted(
    pictures: Sequence[Path], recipe: Recipe, checkpoint: Path, settings: Settings
) -> tuple[Path, ...]:
    """The pictures, scaled and cropped where the recipe asks for another size."""
    side = fitting_side(recipe, checkpoint)
    exact = any(one.training.resolution for one in recipe.trainings())
    return tuple(
        one if not exact and _is_usable(one) else fitted_picture(one, side, settings) for one in pictures
    )


def _is_usable(picture: Path) -> bool:
    """Whether the sides are multiples of 64, as any size will do."""
    return all(side % 64 == 0 for side in picture_size(picture))
