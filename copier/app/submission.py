"""From the JSON that a program sends to what is carried out: names become files, every path is checked.

A run is sent as ``request_json`` writes it, with what a stranger to this machine cannot know left to the
program: a recipe and a checkpoint may be named, a picture may be sent itself, and the output folder has a
name of its own where none is given.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from copier.app.names import check_name, folder_name
from copier.app.operation_arguments import FILES, OUT, WEIGHTED, read_arguments
from copier.app.own_recipes import Imported, imported_json, known_recipes
from copier.app.ports import GenerateRequest, HostServices, allowed_path, check_extra
from copier.app.request_json import VERSION, request_from_json
from copier.app.settings import Settings
from copier.codec import recipe_to_json, spec_from_json, value_from_json
from copier.errors import BadInput, BadPicture, UnknownName, about
from copier.recipe import Recipe
from copier.request import ENDINGS, Fit, PictureFiles, RunRequest

Json = dict[str, Any]

MOST_SEEDS = 20
"""Trainings of everything that one job repeats."""
_FOR_SUBMISSION = ("set", "control", "seeds", "card")
_TENSORS = ".safetensors"
_PROGRAM = Path(__file__).resolve().parent.parent
_NO_OVERWRITING = "nothing is ever overwritten: leave out 'overwrite', and choose another name"


@dataclass(frozen=True)
class Submission:
    """A run as it was sent; ``notes`` say what was done or left out, one sentence each."""

    request: RunRequest
    control: bool = False
    seeds: int = 1
    notes: tuple[str, ...] = ()


def read_run(data: Any, host: HostServices, settings: Settings) -> Submission:
    """The run in ``data``: the fields of a request, and ``set``, ``control``, ``seeds`` and ``card``.

    ``recipe`` is a name or a recipe; ``checkpoint`` a name of the host's list or a path, or left out for the
    current one; of ``pictures`` each is what ``request_json`` writes, or one picture as ``read_picture_file``
    takes it; ``out`` may be left out. Sent pictures are kept in the data directory; nothing else is written.

    Raises:
        CopierError: as ``request_from_json``, ``cards.changed`` and ``ports.allowed_path``; its ``field``
            says where.
    """
    content = dict(_object("a run", data))
    mine = {name: content.pop(name) for name in _FOR_SUBMISSION if name in content}
    with about("checkpoint"):
        checkpoint = checkpoint_path(content.get("checkpoint"), host)
    device = _read("device", str, content.get("device", "auto"))
    changes = _read("set", tuple[str, ...], mine.get("set", ()))
    card = _read("card", int | None, mine.get("card"))
    with about("recipe"):
        taken = read_recipe(content.get("recipe"), settings)
    recipe, notes = taken.recipe, taken.notes
    with about("set"):
        from copier.app.cards import changed

        recipe, note = changed(recipe, changes, checkpoint, settings, device=device, card=card)
    content |= {"version": VERSION, "recipe": recipe_to_json(recipe), "checkpoint": str(checkpoint)}
    content["pictures"] = _pictures(content.get("pictures"), recipe, checkpoint, host, settings)
    content |= _paths(content, host)
    request = request_from_json({"out": str(_out(content, recipe, host)), **content})
    with about("scripts.extra"):
        check_extra(request.scripts.extra, host.security())
    seeds = _read("seeds", int, mine.get("seeds", 1))
    if not 1 <= seeds <= MOST_SEEDS:
        with about("seeds"):
            raise BadInput(f"seeds is {seeds}: give 1 to {MOST_SEEDS}")
    control = _read("control", bool, mine.get("control", False))
    return Submission(request, control, seeds, (*notes, *filter(None, [note])))


def read_recipe(given: Any, settings: Settings) -> Imported:
    """A recipe by its name, or the recipe itself as JSON, without what names files of a machine.

    Raises:
        UnknownName: there is none of that name.
        BadInput: as ``own_recipes.imported``.
    """
    if not isinstance(given, str):
        return imported_json(given)
    known = known_recipes(settings)
    if given not in known:
        raise UnknownName("recipe", given, known)
    return Imported(known[given])


def checkpoint_path(given: Any, host: HostServices) -> Path:
    """The checkpoint of that name in the host's list, or at that path; None: the current one.

    Raises:
        BadInput: there is no such file, it may not be named, or there is no current one.
    """
    if given is None:
        current = host.current_checkpoint()
        if current is None:
            raise BadInput("no checkpoint is chosen in the WebUI: name one")
        return current.path
    name = value_from_json("checkpoint", str, given)
    named = next((one.path for one in host.checkpoints() if one.name == name), None)
    return named or checked_path(name, host)


def lora_path(given: Any, host: HostServices) -> Path:
    """The LoRA of that name in the host's folder (below it: ``folder/name``), or at that path.

    Raises:
        BadInput: as ``checked_path``.
    """
    name = value_from_json("lora", str, given)
    for path in host.loras():
        label = lora_label(path, host)
        if name in (label, label.removesuffix(_TENSORS)):
            return path
    return checked_path(name, host)


def lora_label(path: Path, host: HostServices) -> str:
    """How a list names a LoRA: by its place in the LoRA folder, as two may have one name."""
    folder = host.folders().loras
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def checked_path(given: Any, host: HostServices) -> Path:
    """An absolute path that may be named here.

    Raises:
        BadInput: it is relative, or ``ports.allowed_path`` refuses it.
    """
    text = value_from_json("path", str, given)
    if not text or not Path(text).expanduser().is_absolute():
        raise BadInput(f"{text!r} is neither a name that is known nor an absolute path: give one of them")
    return allowed_path(Path(text), host)


def read_picture_file(given: Any, host: HostServices, settings: Settings) -> Path:
    """A picture: a path, or ``{"data": base64, "name": "a.png"}``, which is kept in the data directory.

    ``data`` may be a data URI; without a name it is ``picture``.

    Raises:
        BadInput, BadPicture: it is neither, is no picture, or the path may not be named.
    """
    if not isinstance(given, Mapping):
        return checked_path(given, host)
    for name in given:
        if name not in ("data", "name"):
            raise UnknownName("field of a picture", name, ("data", "name"))
    text = value_from_json("data", str, given.get("data"))
    head, comma, rest = text.partition(",")
    coded = rest if comma and head.startswith("data:") else text
    try:
        content = base64.b64decode("".join(coded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadInput("the picture's data is no base64: encode the file's bytes") from None
    return keep_content(content, value_from_json("name", str, given.get("name", "picture.png")), settings)


def keep_content(content: bytes, name: str, settings: Settings) -> Path:
    """``pair_preview.keep_picture`` of a file of that name and content, which is nowhere yet.

    Raises:
        BadInput, BadPicture: the name is none, or the content no picture.
    """
    from copier.app.pair_preview import keep_picture

    ending = Path(name).suffix if Path(name).suffix.lower() in ENDINGS else ""
    check_name(name.removesuffix(ending), "the picture's name")
    with tempfile.TemporaryDirectory(prefix="copier-") as folder:
        place = Path(folder) / (name if ending else f"{name}.png")
        place.write_bytes(content)
        try:
            return keep_picture(place, settings)
        except BadPicture as error:
            raise BadPicture(str(error).replace(str(place), place.name)) from None


def read_operation(operation: str, data: Any, host: HostServices) -> Json:
    """The arguments of an operation on files, with names as paths; ``out`` may be the name of a new file.

    A new LoRA goes into the LoRA folder, a new checkpoint into that of checkpoints.

    Raises:
        CopierError: as ``operation_arguments.read_arguments``, ``lora_path`` and ``tensors_place``.
    """
    arguments = read_arguments(operation, data)
    if "overwrite" in arguments:
        with about("overwrite"):
            raise BadInput(_NO_OVERWRITING)
    for name in FILES:
        if name in arguments:
            checkpoint = name in ("checkpoint", "tuned", "base")
            with about(name):
                find = checkpoint_path if checkpoint else lora_path
                arguments[name] = find(arguments[name], host)
    if WEIGHTED in arguments:
        with about(WEIGHTED):
            arguments[WEIGHTED] = [(lora_path(path, host), weight) for path, weight in arguments[WEIGHTED]]
    with about(OUT):
        arguments[OUT] = tensors_place(arguments[OUT], host, checkpoint=operation == "merge")
    return arguments


def tensors_place(given: str, host: HostServices, *, checkpoint: bool) -> Path:
    """Where a new LoRA or checkpoint goes: an absolute path, or as ``new_tensors_file``.

    Raises:
        BadInput: the name is none, or the path may not be named.
    """
    if Path(given).expanduser().is_absolute():
        return allowed_path(Path(given), host)
    return new_tensors_file(given, host, checkpoint=checkpoint)


def new_tensors_file(name: str, host: HostServices, *, checkpoint: bool) -> Path:
    """A file of that name in the host's folder of LoRAs, or of checkpoints; the folder is made if need be.

    Raises:
        BadInput: the name is none.
    """
    folder = _checkpoint_folder(host) if checkpoint else host.folders().loras
    stem = check_name(name.strip().removesuffix(_TENSORS))
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{stem}{_TENSORS}"


def _checkpoint_folder(host: HostServices) -> Path:
    # The embedded checkpoint may lie in the program's own folder: nothing is written there.
    folders = host.folders()
    outside = (one for one in folders.checkpoints if not one.resolve().is_relative_to(_PROGRAM))
    return next(outside, folders.output)


def read_generation(data: Any, host: HostServices) -> GenerateRequest:
    """What the host is asked to draw; ``checkpoint`` and ``loras`` ([name, weight] each) by name or path.

    Raises:
        CopierError: as ``codec.spec_from_json``, ``checkpoint_path`` and ``lora_path``.
    """
    content = dict(_object("a drawing", data))
    given = content.pop("loras", ())
    if content.get("checkpoint") is not None:
        with about("checkpoint"):
            content["checkpoint"] = str(checkpoint_path(content["checkpoint"], host))
    content |= _model(content, host)
    request = spec_from_json(GenerateRequest, content)
    with about("loras"):
        if not isinstance(given, (list, tuple)) or not all(
            isinstance(one, (list, tuple)) and len(one) == 2 for one in given
        ):
            raise BadInput(f"loras is {given!r}: give a list of [name, weight]")
        pairs = [(lora_path(one, host), value_from_json("weight", float, weight)) for one, weight in given]
    return replace(request, loras=tuple(pairs))


def _pictures(
    data: Any, recipe: Recipe, checkpoint: Path, host: HostServices, settings: Settings
) -> dict[str, Json]:
    found = {}
    with about("pictures"):
        given = _object("pictures", {} if data is None else data)
    for name, one in given.items():
        with about(f"pictures.{name}"):
            found[str(name)] = _source(one, recipe, checkpoint, host, settings)
    return found


def _source(given: Any, recipe: Recipe, checkpoint: Path, host: HostServices, settings: Settings) -> Json:
    """One set of pictures as ``request_json`` writes it: files are kept, checked, and scaled if asked for."""
    if isinstance(given, str) or (isinstance(given, Mapping) and "kind" not in given and "data" in given):
        given = {"kind": "files", "paths": [given]}
    source = dict(_object("a set of pictures", given))
    if source.get("kind") != "files":
        return source
    scale = _read("scale", bool, source.pop("scale", False))
    fit = value_from_json("fit", Fit, source.get("fit", "none"))
    paths = source.get("paths")
    if not isinstance(paths, Sequence) or isinstance(paths, str):
        raise BadInput(f"paths is {paths!r}: give a list of pictures")
    files = [file for one in paths for file in _files(read_picture_file(one, host, settings), fit)]
    if scale:
        from copier.app.fitting import fitted

        files = list(fitted(files, recipe, checkpoint, settings))
    return {**source, "paths": list(map(str, files))}


def _files(path: Path, fit: Fit) -> tuple[Path, ...]:
    return PictureFiles.at(path, fit).paths


def _paths(content: Json, host: HostServices) -> Json:
    """The other paths of a request, checked."""
    found: Json = {}
    with about("loras"):
        given = _object("loras", content.get("loras") or {})
    found["loras"] = {}
    for name, one in given.items():
        with about(f"loras.{name}"):
            found["loras"][name] = str(lora_path(one, host))
    if content.get("captions") is not None:
        with about("captions"):
            found["captions"] = str(checked_path(content["captions"], host))
    if content.get("out") is not None:
        with about("out"):
            found["out"] = str(checked_path(content["out"], host))
    return {**found, **_model(content, host)}


def _model(content: Json, host: HostServices) -> Json:
    """How the checkpoint is used, its VAE by a name of the host's list or a path."""
    with about("model"):
        model = dict(_object("model", content.get("model") or {}))
    if model.get("vae") is not None:
        with about("model.vae"):
            name = value_from_json("vae", str, model["vae"])
            named = next((one.path for one in host.vaes() if one.name == name), None)
            model["vae"] = str(named or checked_path(name, host))
    return {"model": model}


def _out(content: Json, recipe: Recipe, host: HostServices) -> Path:
    """A new folder among the host's output: by the time, and what the run is about."""
    edits = (one.get("name") for one in content["pictures"].values() if one.get("kind") == "edit")
    title = content.get("title") or next(filter(None, edits), "") or recipe.name
    return new_output_folder(str(title), host)


def new_output_folder(title: str, host: HostServices) -> Path:
    """A folder among the host's output that no other has, however many are sent at once; it is not made."""
    return host.folders().output / f"{folder_name(title)}-{secrets.token_hex(2)}"


def _object(what: str, data: Any) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise BadInput(f"{what} is {data!r:.80}: give a JSON object")
    return data


def _read(name: str, hint: Any, value: Any) -> Any:
    with about(name):
        return value_from_json(name, hint, value)
