"""From what the form holds to a run: every problem beside its field, nothing is started with one."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from copier.app.names import folder_name
from copier.app.ports import CheckpointInfo, HostServices, allowed_path, check_extra
from copier.app.settings import Settings
from copier.app.submission import MOST_SEEDS, lora_label
from copier.errors import BadInput, CopierError
from copier.model_options import ModelOptions, Prediction, Switch
from copier.recipe import Recipe
from copier.request import Edit, PictureFiles, RunRequest, ScriptOptions, Source
from copier.ui.caption_rows import caption_sets
from copier.ui.picture_sets import Pictures, PictureSets, picture_sets
from copier.ui.recipe_form import Problem

FOLLOW = "The one that is loaded"
"""First choice of the list of checkpoints: whatever the host's current one is."""
OWN_EDIT = "A picture of my own"
"""Choice of the list of edits: B is a file."""
OWN_VAE = "The checkpoint's own"
LORA_SLOTS = 3
"""LoRA files that a recipe of the tab may start from."""

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """A run that may start, or why it may not."""

    request: RunRequest | None
    control: bool = False
    seeds: int = 1
    title: str = ""
    problems: tuple[Problem, ...] = ()


class Reader:
    """Reads answers one by one and gathers what is wrong with each."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = answers
        self.problems: list[Problem] = []

    def take(self, path: str, reader: Callable[[Any], T], otherwise: T) -> T:
        """What ``reader`` makes of the answer; with a problem, ``otherwise``."""
        try:
            return reader(self.answers.get(path))
        except CopierError as error:
            self.problems.append(Problem(path, str(error)))
            return otherwise

    def whole(self, path: str, label: str, low: int, high: int) -> int:
        """A whole number within bounds."""
        return self.take(path, lambda given: whole(given, label, low, high), low)


def whole(given: Any, label: str, low: int, high: int) -> int:
    """``given`` as a whole number from ``low`` to ``high``. Raises BadInput."""
    if given is None or given == "":
        raise BadInput(f"{label} is empty: give a whole number from {low} to {high}")
    number = float(given)
    if not number.is_integer() or not low <= number <= high:
        raise BadInput(f"{label} is {given:g}: give a whole number from {low} to {high}")
    return int(number)


def decimal(given: Any, label: str, low: float, high: float) -> float:
    """``given`` as a number from ``low`` to ``high``. Raises BadInput."""
    if given is None or given == "":
        raise BadInput(f"{label} is empty: give a number from {low:g} to {high:g}")
    number = float(given)
    if not low <= number <= high:
        raise BadInput(f"{label} is {given:g}: give a number from {low:g} to {high:g}")
    return number


def chosen_checkpoint(given: Any, host: HostServices) -> CheckpointInfo:
    """The checkpoint that a list shows under that name. Raises BadInput where there is none."""
    if given in (None, "", FOLLOW):
        current = host.current_checkpoint()
        if current is None:
            raise BadInput("no checkpoint is loaded: choose one from the list")
        return current
    for one in host.checkpoints():
        if one.name == given:
            return one
    raise BadInput(f"the checkpoint {given!r} is not there any more: refresh the list and choose another one")


def chosen_edit(answers: Mapping[str, Any], edits: Sequence[Mapping[str, Any]]) -> Edit | None:
    """The built-in edit that is chosen, with its values; None where B is a file.

    Raises:
        BadInput: no edit is chosen, or a value is missing.
    """
    label = answers.get("edited.edit")
    if label == OWN_EDIT:
        return None
    for edit in edits:
        if edit["label"] == label:
            values = {}
            for one in edit["parameters"]:
                path = f"edited.{edit['name']}.{one['name']}"
                given = answers.get(path, one["default"])
                values[one["name"]] = decimal(given, one["label"], one["minimum"], one["maximum"])
            return Edit(edit["name"], values)
    raise BadInput("no edit is chosen: choose what changes between A and B")


def wanted(
    answers: Mapping[str, Any],
    recipe: Recipe,
    pictures: Pictures,
    host: HostServices,
    settings: Settings,
    edits: Sequence[Mapping[str, Any]],
) -> Wanted:
    """The run that the form asks for. All that can be told without looking into files is told at once."""
    reader = Reader(answers)
    nowhere = CheckpointInfo(Path(), "")
    checkpoint = reader.take("original.checkpoint", lambda given: chosen_checkpoint(given, host), nowhere)
    sources = _sources(reader, recipe, pictures, checkpoint.path, settings, edits)
    title = str(answers.get("run.title") or "").strip()
    model = reader.take("run.zero_terminal_snr", lambda _: _model_options(answers, host), ModelOptions())
    extra = reader.take("run.extra", lambda given: _extra(given, host), ())
    every = reader.whole("run.sample_every", "Pictures on the way", 0, 1_000_000)
    threads = reader.whole("run.threads", "Threads", 0, 256)
    seeds = reader.whole("run.seeds", "Training seeds", 1, MOST_SEEDS)
    loras = _loras(reader, recipe, host)
    captions = _captions(reader, recipe, pictures, host, settings)
    if reader.problems:
        return Wanted(None, problems=tuple(reader.problems))
    try:
        request = RunRequest(
            recipe=recipe,
            checkpoint=checkpoint.path,
            pictures=sources,
            loras=loras,
            out=host.folders().output / folder_name(title or _edit_name(sources) or recipe.name),
            title=title,
            device=str(answers.get("run.device") or "auto"),
            threads=threads or None,
            model=model,
            scripts=ScriptOptions(extra, every),
            captions=captions,
        )
    except BadInput as error:
        return Wanted(None, problems=(Problem("recipe.pictures", str(error)),))
    # The flag is not in sight where nothing is measured.
    control = bool(answers.get("run.control")) and recipe.measures
    return Wanted(request, control, seeds, title)


def _sources(
    reader: Reader,
    recipe: Recipe,
    pictures: Pictures,
    checkpoint: Path,
    settings: Settings,
    edits: Sequence[Mapping[str, Any]],
) -> dict[str, Source]:
    """The recipe's pictures: originals, and changes of them or a second set."""
    try:
        sets = picture_sets(recipe)
    except BadInput as error:
        reader.problems.append(Problem("recipe.pictures", str(error)))
        return {}
    if not sets.first:
        return {}
    if not pictures.originals:
        reader.problems.append(Problem("original.files", _no_original(sets)))
        return {}

    def ready(files: Sequence[Path]) -> PictureFiles:
        from copier.app.fitting import fitted

        fit = reader.answers.get("original.fit") and checkpoint.is_file()
        return PictureFiles(fitted(files, recipe, checkpoint, settings) if fit else tuple(files))

    none = PictureFiles(pictures.originals)
    found: dict[str, Source] = {
        sets.first: reader.take("original.files", lambda _: ready(pictures.originals), none)
    }
    if sets.second:
        found[sets.second] = reader.take("edited.files", lambda _: ready(_second(pictures, sets)), none)
    if sets.changed:
        edit = reader.take("edited.edit", lambda _: chosen_edit(reader.answers, edits), None)
        if edit is not None:
            found[sets.changed] = edit
        elif reader.answers.get("edited.edit") == OWN_EDIT:
            found[sets.changed] = reader.take("edited.files", lambda _: ready(partners(pictures)), none)
    return found


def _no_original(sets: PictureSets) -> str:
    if sets.changed:
        return "there is no original yet: draw one, or drop a picture in"
    return f"there is no picture of {sets.first!r} yet: draw some, or drop them in"


def _second(pictures: Pictures, sets: PictureSets) -> tuple[Path, ...]:
    """The pictures of a second set, which are no changes of the first."""
    if not pictures.edited:
        raise BadInput(f"there is no picture of {sets.second!r} yet: drop them in")
    return pictures.edited


def partners(pictures: Pictures) -> tuple[Path, ...]:
    """The edited pictures in the order of their originals: by name, where there are several."""
    if not pictures.edited:
        raise BadInput("there is no edited picture yet: drop B in, or choose a built-in edit")
    if len(pictures.originals) == 1 and len(pictures.edited) == 1:
        return pictures.edited
    by_name = {one.stem: one for one in pictures.edited}
    missing = [one.stem for one in pictures.originals if one.stem not in by_name]
    if missing or len(pictures.edited) != len(pictures.originals):
        raise BadInput(
            f"there are {len(pictures.originals)} originals and {len(pictures.edited)} edited pictures; "
            f"missing: {', '.join(missing) or 'none'}. Give each edited picture its original's name"
        )
    return tuple(by_name[one.stem] for one in pictures.originals)


def _loras(reader: Reader, recipe: Recipe, host: HostServices) -> dict[str, Path]:
    """The LoRA files that the recipe starts from."""
    if len(recipe.files) > LORA_SLOTS:
        problem = f"the recipe starts from {len(recipe.files)} LoRA files, the tab takes {LORA_SLOTS}"
        reader.problems.append(Problem("recipe.name", f"{problem}: use `copier run` for this recipe"))
        return {}
    return {
        name: reader.take(f"run.lora{i + 1}", lambda given: lora_file(given, host), Path())
        for i, name in enumerate(recipe.files)
    }


def lora_file(given: Any, host: HostServices) -> Path:
    """The LoRA that a list shows so. Raises BadInput where none is chosen, or it is gone."""
    if not given:
        raise BadInput("no LoRA is chosen: choose a file from the list")
    for path in host.loras():
        if lora_label(path, host) == given:
            return path
    raise BadInput(f"the LoRA {given!r} is not there any more: refresh the list and choose another one")


def _model_options(answers: Mapping[str, Any], host: HostServices) -> ModelOptions:
    vae = None
    if answers.get("run.vae") not in (None, "", OWN_VAE):
        vae = next((one.path for one in host.vaes() if one.name == answers["run.vae"]), None)
        if vae is None:
            raise BadInput(f"the VAE {answers['run.vae']!r} is not there any more: choose another one")
    return ModelOptions(
        vae,
        whole(answers.get("run.clip_skip", 1), "Clip skip", 1, 12),
        Prediction(answers.get("run.prediction") or "auto"),
        Switch(answers.get("run.zero_terminal_snr") or "auto"),
    )


def _extra(given: Any, host: HostServices) -> tuple[str, ...]:
    """Free arguments of the user's own: never from a stranger, for they may name modules to be run."""
    text = str(given or "").strip()
    check_extra([text] if text else [], host.security())
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise BadInput(f"the extra arguments cannot be split ({error}): close the quotes") from None


def _captions(
    reader: Reader, recipe: Recipe, pictures: Pictures, host: HostServices, settings: Settings
) -> Path | None:
    """The folder of the captions: of the user's own, or of those in the table."""
    folder = reader.take("run.captions", lambda given: _folder(given, host), None)
    sets = reader.take("captions.table", lambda _: _table(reader.answers, recipe, pictures), {})
    if not sets:
        return folder
    if folder is not None:
        problem = "there are captions in the table under Captions too: empty this field, or the table"
        reader.problems.append(Problem("run.captions", problem))
        return None
    from copier.app.caption_sets import keep_caption_sets

    return reader.take("captions.table", lambda _: keep_caption_sets(sets, settings), None)


def _table(answers: Mapping[str, Any], recipe: Recipe, pictures: Pictures) -> Mapping[str, Mapping[str, str]]:
    """The captions in the table; none while its pictures are not what the recipe wants, as a field says."""
    try:
        sets = picture_sets(recipe)
        own = partners(pictures) if sets.changed and answers.get("edited.edit") == OWN_EDIT else ()
    except BadInput:
        return {}
    return caption_sets(recipe, pictures, own)


def _folder(given: Any, host: HostServices) -> Path | None:
    text = str(given or "").strip()
    if not text:
        return None
    path = allowed_path(Path(text), host)
    if not path.is_dir():
        raise BadInput(f"there is no folder {text}: give one that holds the caption files, or leave it empty")
    return path


def _edit_name(sources: Mapping[str, Source]) -> str:
    return next((one.name for one in sources.values() if isinstance(one, Edit)), "")
