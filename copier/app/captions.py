"""Caption files for training pictures: said by a tagger, other files or the user, reduced by a policy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from copier.app.checks import check_data_folder
from copier.app.crew import find_tagger_kit
from copier.app.room import check_room
from copier.app.settings import Settings
from copier.captioning import CAPTION_ENDING, Captioner, Policy, caption_of, captions_by
from copier.errors import BadInput, BadPicture, TaggingFailed
from copier.fields import check_text
from copier.pipeline.plan import read_captions
from copier.pipeline.results import check_folder, prepare_folder
from copier.pipeline.store import StageStore
from copier.progress import CancelToken, Observer, ignore
from copier.request import PictureFiles
from copier.temporary import replace_file
from copier.training.tagger import THRESHOLD, check_threshold, tag_pictures
from copier.training.tagger_model import find_model


@dataclass(frozen=True)
class CaptionRequest:
    """Caption files for ``pictures``, one set, into the folder ``out``.

    ``keep`` takes the place of the policy's own list of tags to keep; ``overwrite`` replaces caption files.

    Raises:
        BadInput: there is no picture, two would share a caption file, or the policy does not take the tags.
    """

    pictures: tuple[Path, ...]
    out: Path
    policy: Policy = Policy.ALL
    keep: tuple[str, ...] | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.pictures:
            raise BadInput("there is no picture to caption: give at least one")
        captions_by(self.policy, (), self.keep)
        for tag in self.keep or ():
            check_text("a tag to keep", tag)
        seen: dict[str, Path] = {}
        for picture in self.pictures:
            # Where the file system takes capitals and small letters for the same, so does normcase.
            first = seen.setdefault(os.path.normcase(picture.stem), picture)
            if first is not picture:
                raise BadInput(
                    f"{first} and {picture} would share the caption file {picture.stem}{CAPTION_ENDING}: "
                    "rename one, or caption them into two folders"
                )

    @property
    def places(self) -> tuple[Path, ...]:
        """The caption file of each picture."""
        return tuple(self.out / f"{picture.stem}{CAPTION_ENDING}" for picture in self.pictures)


@dataclass(frozen=True)
class Caption:
    """A picture, the caption file that was written for it, what was said about it, and what was kept."""

    picture: Path
    file: Path
    said: str
    text: str


@dataclass(frozen=True)
class OneText:
    """The captioner that says the same of every picture."""

    text: str

    def __post_init__(self) -> None:
        check_text("the caption", self.text)

    def __call__(
        self, pictures: Sequence[Path], *, observer: Observer, cancel: CancelToken
    ) -> Sequence[str]:
        """The text, for each of them."""
        return [self.text] * len(pictures)


@dataclass(frozen=True)
class CaptionFiles:
    """The captioner that reads the caption files in ``folder``, which have the pictures' names."""

    folder: Path

    def __call__(
        self, pictures: Sequence[Path], *, observer: Observer, cancel: CancelToken
    ) -> Sequence[str]:
        """The texts; raises ``BadInput`` where one is missing or is no UTF-8."""
        places = [self.folder / f"{picture.stem}{CAPTION_ENDING}" for picture in pictures]
        missing = [place.name for place in places if not place.is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise BadInput(f"there is no {missing[0]}{more} in {self.folder}: write one for every picture")
        return [read_captions(place).rstrip("\r\n") for place in places]


@dataclass(frozen=True)
class Wd14Tagger:
    """The captioner that runs the WD14 tagger of sd-scripts.

    Attributes:
        settings: where its packages and models are, and which Python runs it.
        model: a folder of the user's with a model; None: the usual one.
        threshold: from which probability on a tag counts.
        allow_download: of the usual model, where it is not there.
    """

    settings: Settings
    model: Path | None = None
    threshold: float = THRESHOLD
    allow_download: bool = False

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    def __call__(
        self, pictures: Sequence[Path], *, observer: Observer, cancel: CancelToken
    ) -> Sequence[str]:
        """The tags; raises as ``find_model``, ``find_tagger_kit`` and ``tag_pictures``."""
        settings = self.settings
        check_data_folder(settings.data)
        check_room(settings.data, "--data")
        model = find_model(settings.tagger_models, self.model, allow_download=self.allow_download)
        kit = find_tagger_kit(settings)
        settings.logs.mkdir(parents=True, exist_ok=True)
        with StageStore(settings.stages).scratch("caption") as work:
            tagged = tag_pictures(
                pictures,
                kit.scripts(settings, threads=None),
                model,
                work=work.absolute(),
                threshold=self.threshold,
                log_path=settings.logs / "tagger.log",
                observer=observer,
                cancel=cancel,
            )
        return [caption_of(one.tags) for one in tagged]


def pictures_at(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The pictures at the paths, each a file or a folder of them; raises as ``PictureFiles.at``."""
    return tuple(picture for path in paths for picture in PictureFiles.at(path).paths)


def caption_pictures(
    request: CaptionRequest,
    captioner: Captioner,
    *,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> tuple[Caption, ...]:
    """Write the caption file of each picture, in UTF-8; nothing before there is a text for all of them.

    Raises:
        BadInput, BadPicture: before the captioner is asked, and so before anything is computed or written.
        CopierError: what the captioner raises; nothing was written.
    """
    cancel = cancel or CancelToken()
    _check(request)
    said = what_is_said(request.pictures, captioner, observer=observer, cancel=cancel)
    texts = captions_by(request.policy, said, request.keep)
    cancel.check()
    prepare_folder(request.out)
    _refuse_existing(request)  # what came while it was computed
    for place, text in zip(request.places, texts, strict=True):
        # An empty line, not an empty file: that is an error to sd-scripts.
        replace_file(place, f"{text}\n".encode())
    rows = zip(request.pictures, request.places, said, texts, strict=True)
    return tuple(Caption(*row) for row in rows)


def what_is_said(
    pictures: Sequence[Path], captioner: Captioner, *, observer: Observer = ignore, cancel: CancelToken
) -> tuple[str, ...]:
    """What the captioner says of each picture.

    Raises:
        TaggingFailed: it does not say one text for each.
        CopierError: what it raises.
    """
    said = tuple(captioner(pictures, observer=observer, cancel=cancel))
    if len(said) != len(pictures):
        raise TaggingFailed(
            f"there are {len(said)} captions for {len(pictures)} pictures: this captioner is broken, "
            "use another one"
        )
    return said


def _check(request: CaptionRequest) -> None:
    for picture in request.pictures:
        if not picture.is_file():
            raise BadPicture(f"there is no file {picture}: check the path")
        check_text("the name of a picture", picture.stem)
    check_folder(request.out, report=False)
    _refuse_existing(request)


def _refuse_existing(request: CaptionRequest) -> None:
    there = [place for place in request.places if os.path.lexists(place)]
    if folders := [place for place in there if place.is_dir()]:
        raise BadInput(f"{folders[0]} is a folder: choose another one for the caption files")
    if there and not request.overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise BadInput(f"{there[0]}{more} exist: choose another folder, or allow it with --overwrite")
