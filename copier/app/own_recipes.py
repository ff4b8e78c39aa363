"""Recipes that are not built in: the user's own presets, and those that LoRAs and pictures carry.

What names files of this machine, or is handed to a script unseen, never comes in with a recipe: it is left
out, with a note.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from copier.app.names import check_name, free_name
from copier.app.settings import Settings
from copier.checkpoint.header import read_header
from copier.codec import (
    FORMAT,
    RECIPE_KEY,
    builtin_recipes,
    load_recipe,
    recipe_from_json,
    recipe_to_json,
)
from copier.errors import BadInput, CopierError, UnknownName
from copier.images.pairs import read_picture
from copier.recipe import STAGE_KINDS, Recipe, TrainingSpec
from copier.temporary import create_file, replace_file

log = logging.getLogger(__name__)

_LOCAL = frozenset(
    (
        *("extra", "extra_arguments", "scripts", "network_module", "network_args", "optimizer_type"),
        *("checkpoint", "model", "vae", "loras", "out", "output", "path", "paths", "file", "files", "folder"),
        *("pictures", "captions", "device", "threads", "python", "accelerate"),
    )
)
"""Names of what belongs to a run or a machine; where a spec has a field of that name, it is the spec's."""
_TAG = re.compile(r"<lora:([^:<>]+)")
INFOTEXT_KEY = "parameters"
"""Under which A1111 and Forge write into a PNG file what it was drawn from."""
INFOTEXT_FIELD = "Copier recipe"
"""Of the text that a WebUI writes into pictures: the recipe of a LoRA that they were drawn with."""
_IN_INFOTEXT = re.compile(rf'{INFOTEXT_FIELD}: ("(?:[^"\\]|\\.)*")')
"""The WebUI writes a value that has commas as a JSON string."""
_LARGEST_TEXT = 4 << 20
"""Bytes of a recipe's JSON that are read: a recipe has thousands."""


@dataclass(frozen=True)
class Imported:
    """A recipe from elsewhere, and what was left out of it, one sentence each."""

    recipe: Recipe
    notes: tuple[str, ...] = ()


def imported(text: str, source: str) -> Imported:
    """The recipe in JSON text; ``source`` names it in errors.

    Raises:
        BadInput, UnknownName: there is none, or as ``codec.recipe_from_json``.
    """
    if len(text) > _LARGEST_TEXT:
        raise BadInput(f"the recipe in {source} has {len(text) >> 20} MB: the largest size is 4 MB")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{source} is not valid JSON: {error}") from error
    return imported_json(data)


def imported_json(data: Any) -> Imported:
    """The same from JSON that was read already. Raises as ``codec.recipe_from_json``."""
    notes: list[str] = []
    if isinstance(data, Mapping) and "format" not in data and isinstance(data.get("recipe"), Mapping):
        notes += [_note(name) for name in data if name not in ("recipe", "version")]
        data = data["recipe"]
    if isinstance(data, Mapping) and data.get("format") == FORMAT:
        data = _cleaned(data, notes)
    return Imported(recipe_from_json(data), tuple(dict.fromkeys(notes)))


def recipe_of_lora(path: Path) -> Imported:
    """The recipe that a LoRA file carries.

    Raises:
        BadInput, BadCheckpoint: it carries none, or cannot be read.
    """
    text = read_header(path).metadata.get(RECIPE_KEY)
    if text is None:
        raise BadInput(f"{path.name} carries no recipe: only LoRAs that this program made do")
    return imported(text, f"the recipe in {path.name}")


def recipe_of_picture(path: Path, loras: Sequence[Path] = ()) -> Imported:
    """The recipe that a picture carries, or that of the first LoRA that its prompt names (``<lora:name:1>``).

    It carries one as ours, or in the text that a WebUI writes, under ``INFOTEXT_FIELD``.

    Args:
        loras: files in which a LoRA of the prompt is looked for, by file name or alias.

    Raises:
        BadInput, BadPicture: there is neither.
    """
    read_picture(path)
    with Image.open(path) as image:
        texts = {name: value for name, value in getattr(image, "text", {}).items() if isinstance(value, str)}
    if RECIPE_KEY in texts:
        return imported(texts[RECIPE_KEY], f"the recipe in {path.name}")
    infotext = texts.get(INFOTEXT_KEY, "")
    written = _IN_INFOTEXT.search(infotext)
    if written:
        return imported(json.loads(written[1]), f"the recipe in the text of {path.name}")
    names = _TAG.findall(infotext)
    for name in names:
        for lora in loras:
            if _is_called(lora, name):
                return recipe_of_lora(lora)
    what = f"its LoRA {names[0]!r} is not in the LoRA folder" if names else "its text names no LoRA"
    raise BadInput(f"{path.name} carries no recipe, and {what}: load the recipe from a LoRA file instead")


def own_presets(settings: Settings) -> dict[str, Recipe]:
    """The user's presets by name; files that cannot be read are left out, and logged."""
    found = {}
    for path in sorted(settings.presets.glob("*.json")) if settings.presets.is_dir() else ():
        try:
            found[path.stem] = imported(path.read_text(encoding="utf-8"), path.name).recipe
        except (OSError, UnicodeDecodeError, CopierError) as error:
            log.warning("the preset %s is left out: %s", path.name, error)
    return found


def known_recipes(settings: Settings) -> dict[str, Recipe]:
    """The built-in recipes and the user's own, by name."""
    return {**builtin_recipes(), **own_presets(settings)}


def listed(settings: Settings) -> list[dict[str, Any]]:
    """``known_recipes``, a few lines of each as JSON."""
    own = own_presets(settings)
    return [
        {
            "name": name,
            "own": name in own,
            "title": one.title,
            "explanation": one.explanation,
            "trainer": one.trainer.value,
            "stages": [stage.name for stage in one.stages],
        }
        for name, one in {**builtin_recipes(), **own}.items()
    ]


def find_recipe(name_or_path: str, settings: Settings) -> Recipe:
    """A preset of the user's own, a built-in recipe, or one from a ``.json`` file.

    Raises:
        UnknownName: there is none.
        BadInput: as ``codec.load_recipe``.
    """
    known = known_recipes(settings)
    if name_or_path in known:
        return known[name_or_path]
    if not name_or_path.endswith(".json"):
        raise UnknownName("recipe", name_or_path, known)
    return load_recipe(name_or_path)


def save_preset(recipe: Recipe, name: str, settings: Settings, *, overwrite: bool = False) -> Path:
    """Keep the recipe as a preset of that name, which becomes its title.

    Raises:
        BadInput: the name is none, is that of a built-in recipe, or is taken and ``overwrite`` is false.
    """
    _check_new(name)
    path = settings.presets / f"{name}.json"
    content = json.dumps(recipe_to_json(_titled(recipe, name)), indent=1, ensure_ascii=False) + "\n"
    settings.presets.mkdir(parents=True, exist_ok=True)
    if overwrite:
        replace_file(path, content.encode("utf-8"))
    elif not create_file(path, content.encode("utf-8")):
        raise _taken(name, settings)
    return path


def rename_preset(name: str, new: str, settings: Settings) -> Path:
    """Give a preset another name.

    Raises:
        UnknownName: there is no such preset.
        BadInput: as ``save_preset``.
    """
    recipe = _own(name, settings)
    made = save_preset(recipe, new, settings)
    (settings.presets / f"{name}.json").unlink(missing_ok=True)
    return made


def delete_preset(name: str, settings: Settings) -> None:
    """Delete a preset; raises ``UnknownName`` where there is none."""
    _own(name, settings)
    (settings.presets / f"{name}.json").unlink(missing_ok=True)


def _own(name: str, settings: Settings) -> Recipe:
    presets = own_presets(settings)
    if name not in presets:
        raise UnknownName("preset of your own", name, presets)
    return presets[name]


def _check_new(name: str) -> None:
    check_name(name, "the preset's name")
    builtin = builtin_recipes()
    names = {*builtin, *(recipe.title for recipe in builtin.values())}
    if name.casefold() in {one.casefold() for one in names}:
        raise BadInput(f"{name!r} is the name of a built-in recipe, which stays as it is: choose another")


def _taken(name: str, settings: Settings) -> BadInput:
    other = free_name(name, lambda one: (settings.presets / f"{one}.json").exists())
    return BadInput(f"there is a preset {name!r} already: choose another name, such as {other!r}")


def _titled(recipe: Recipe, name: str) -> Recipe:
    """A recipe's own name takes only plain letters; what the user typed is its title."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "own"
    return replace(recipe, name=slug, title=name)


def _cleaned(data: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The recipe's JSON without what is local in it; ``notes`` gets what was left out."""
    recipe = _without_local(data, {*_names(Recipe), "format", "version"}, notes)
    stages = recipe.get("stages")
    if not isinstance(stages, list):
        return recipe
    cleaned = []
    for stage in stages:
        kind = STAGE_KINDS.get(str(stage.get("kind"))) if isinstance(stage, Mapping) else None
        if kind is not None:
            stage = _without_local(stage, {*_names(kind), "kind"}, notes)
            if isinstance(stage.get("training"), Mapping):
                stage["training"] = _without_local(stage["training"], _names(TrainingSpec), notes)
        cleaned.append(stage)
    return {**recipe, "stages": cleaned}


def _without_local(data: Mapping[str, Any], known: Iterable[str], notes: list[str]) -> dict[str, Any]:
    known = set(known)
    left_out = [name for name in data if name not in known and name in _LOCAL]
    notes += map(_note, left_out)
    return {name: value for name, value in data.items() if name not in left_out}


def _note(name: str) -> str:
    return f"{name!r} was left out: it belongs to a run or a machine, and does not come in with a recipe"


def _names(spec: Any) -> set[str]:
    return {field.name for field in fields(spec)}


def _is_called(lora: Path, name: str) -> bool:
    if lora.stem == name:
        return True
    try:
        return read_header(lora).metadata.get("ss_output_name") == name
    except CopierError:
        return False
