"""Runs the WD14 tagger of sd-scripts in a child process: pictures in, tags out.

It works on copies, which are upright and have no transparency, under names of their own: so it writes nothing
beside the user's pictures, and their names do not matter to it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from copier.errors import BadInput, NotInstalled, TaggingFailed
from copier.progress import CancelToken, Observer, guarded, ignore
from copier.training.child_output import lines_of
from copier.training.command_parts import PictureCopy
from copier.training.preflight import copy_picture
from copier.training.process import Child, quoted
from copier.training.sd_scripts import SdScripts
from copier.training.tagger_log import events_of, explain
from copier.training.tagger_model import REPOSITORY, TaggerModel, keep_download, usual_place

SCRIPT = "finetune/tag_images_by_wd14_tagger.py"
THRESHOLD = 0.35
"""How sure the model must be of a tag, 0 to 1: sd-scripts' own default."""
_NO_CHARACTERS = 2
"""Above every probability: v0.10.1 ends with an UnboundLocalError at the first character that it knows."""
_SHORT = 3
_SEPARATOR = ", "


@dataclass(frozen=True)
class Tagged:
    """A picture and its tags, in the model's order; names of characters are not among them."""

    picture: Path
    tags: tuple[str, ...]


def check_threshold(threshold: float) -> None:
    """Raise ``BadInput`` unless it is a probability."""
    if not 0.0 <= threshold <= 1.0:
        raise BadInput(f"the threshold is {threshold:g}: it must be from 0 (every tag) to 1 (sure ones)")


def tag_pictures(
    pictures: Sequence[Path],
    scripts: SdScripts,
    model: TaggerModel,
    *,
    work: Path,
    threshold: float = THRESHOLD,
    log_path: Path | None = None,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> tuple[Tagged, ...]:
    """The tags of the pictures, in their order.

    The thread that calls it must live until it returns: on Linux the child ends with that thread.

    Args:
        scripts: sd-scripts with the packages of the trainer and of the tagger.
        model: what ``find_model`` found; one that is not there is downloaded, and kept in its folder.
        work: an empty folder, which the caller removes; absolute.
        threshold: from which probability on a tag counts.
        log_path: a file to which all that the script prints is appended.
        observer: gets the stage ``tag``, pictures of how many; called from other threads.

    Raises:
        BadInput, BadPicture: a picture, the threshold or the model cannot be used.
        NotInstalled: sd-scripts, or a package, is not there.
        InstallFailed: the model could not be downloaded.
        TaggingFailed: the script crashed, hung, or gave no tags for a picture; with its last lines.
        Cancelled: the token was set; no child is left.
    """
    cancel, observer = cancel or CancelToken(), guarded(observer)
    check_threshold(threshold)
    if not (scripts.folder / SCRIPT).is_file():
        raise NotInstalled(
            f"there is no {SCRIPT} in {str(scripts.folder)!r}: fetch sd-scripts with 'copier trainer install'"
        )
    copies, answer = work / "pictures", work / "tags.json"
    folder = model.folder.absolute() if model.here else usual_place(work / "model")
    arguments = [
        *(str(copies), f"--output_path={answer}"),
        *_model_arguments(folder, here=model.here),
        f"--thresh={threshold!r}",
        f"--character_threshold={_NO_CHARACTERS}",
        f"--caption_separator={_SEPARATOR}",
    ]
    _copy(pictures, copies, cancel)
    try:
        child = Child(
            scripts.launch(SCRIPT, "--parent", str(os.getpid()), arguments=arguments),
            environment=scripts.environment(online=not model.here),
            folder=work,
            log_path=log_path,
            on_line=lambda line: _tell(line, observer),
        )
    except OSError as error:
        raise TaggingFailed(
            f"the tagger cannot be started with {scripts.python!r} ({error.strerror}): check the path of the "
            "Python interpreter"
        ) from error
    try:
        _follow(child, scripts.silent_seconds, cancel)
    finally:
        if not model.here:
            _keep(folder, model)
    tags = _answered(answer) if child.exit_code == 0 else {}
    if set(tags) != {_copy_name(number) for number in range(len(pictures))}:
        raise explain(child.tail, child.exit_code)
    return tuple(Tagged(path, tags[_copy_name(number)]) for number, path in enumerate(pictures))


def readable(tag: str) -> str:
    """A tag of the model's table as captions have it: spaces for underscores, but not in ``^_^``.

    As sd-scripts' ``--remove_underscore``. It is not asked for that: without spaces in them, tags can be told
    from the separator between them.
    """
    return tag.replace("_", " ") if len(tag) > _SHORT else tag


def _model_arguments(folder: Path, *, here: bool) -> tuple[str, ...]:
    """Use the model in ``folder``, or download it there.

    The script looks for a repository's model in the folder of its name in ``--model_dir``: a name without a
    slash is a folder there, and nothing else.
    """
    name = folder.name if here else REPOSITORY
    return ("--onnx", "--batch_size=1", f"--model_dir={folder.parent}", f"--repo_id={name}")


def _copy(pictures: Sequence[Path], folder: Path, cancel: CancelToken) -> None:
    """Copies of the pictures, numbered; raises ``TaggingFailed`` where the disk refuses."""
    try:
        folder.mkdir(parents=True)
        for number, picture in enumerate(pictures):
            cancel.check()
            copy_picture(PictureCopy(picture, folder / _copy_name(number)))
    except OSError as error:
        raise TaggingFailed(
            f"the copies of the pictures cannot be written to {str(folder)!r} ({error}): free some room, or "
            "choose another data directory (--data)"
        ) from error


def _copy_name(number: int) -> str:
    return f"{number:06d}.png"


def _tell(line: str, observer: Observer) -> None:
    for event in events_of(line):
        observer(event)


def _follow(child: Child, silent_seconds: float, cancel: CancelToken) -> None:
    """Wait for its end; end it where it is cancelled, or says nothing for so long."""

    def check() -> None:
        if child.silent_seconds > silent_seconds:
            raise TaggingFailed(
                f"the tagger said nothing for {silent_seconds:g} s and was ended: run it again"
                f"{quoted(child.tail)}"
            )

    for _ in lines_of(child, cancel, waiting=check):
        pass


def _keep(folder: Path, model: TaggerModel) -> None:
    try:
        keep_download(folder, model)
    except OSError as error:
        raise TaggingFailed(
            f"the tagger's model cannot be kept in {str(model.folder)!r} ({error}): free some room, or "
            "choose another data directory (--data)"
        ) from error


def _answered(path: Path) -> dict[str, tuple[str, ...]]:
    """The tags by the names of the copies; none where the script wrote no such answer."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {
            Path(name).name: tuple(readable(tag) for tag in entry["tags"].split(_SEPARATOR) if tag)
            for name, entry in entries.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
