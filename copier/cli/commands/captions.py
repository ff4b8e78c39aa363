"""``copier caption``: caption files for training pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from copier.captioning import DEFAULT_KEEP, Policy
from copier.cli.parser import Commands, finite
from copier.cli.session import Answer, Session
from copier.cli.text import table
from copier.errors import BadInput

if TYPE_CHECKING:
    from copier.captioning import Captioner

_POLICIES = [policy.value for policy in Policy]


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "caption",
        "write caption files for training pictures",
        """
        Write a caption file for each picture, for recipes that read them (`copier run --captions`). What is
        on the pictures says a tagger (--tagger, sd-scripts' WD14 tagger), caption files that are there
        (--from), or you (--text). A policy then keeps part of it:

          all       everything
          varies    what is not on every picture, and the tags to keep: for a base set
          constant  only the tags to keep: for what is trained on a base

        Pictures are only read, and their folders left alone; no caption file is replaced without
        --overwrite. The tagger needs 'copier trainer install --tagger', and a model in a folder: nothing is
        downloaded without --allow-download.
        """,
        (
            "caption pictures/ -o captions --tagger",
            "caption base/ -o base-captions --tagger --policy varies --model wd-v1-4-convnext-tagger-v2",
            'caption hero/ -o hero-captions --from tags --policy constant --keep "white background"',
            'caption a.png b.png -o captions --text "a drawing"',
        ),
        _caption,
    )
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="picture files, or folders")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="folder of the caption files"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tagger", action="store_true", help="tag them with the WD14 tagger of sd-scripts")
    source.add_argument("--from", type=Path, metavar="DIR", dest="source", help="read caption files there")
    source.add_argument("--text", metavar="TEXT", help="the same caption for all of them")
    parser.add_argument("--policy", choices=_POLICIES, default="all", help="what is kept (default: all)")
    parser.add_argument(
        "--keep",
        action="append",
        metavar="TAG",
        help=f"a tag to keep; may be repeated; '' for none (default: for varies {_list(Policy.VARIES)}; "
        f"for constant {_list(Policy.CONSTANT)})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace caption files that are there")
    tagger = parser.add_argument_group("the tagger")
    tagger.add_argument(
        "--threshold", type=finite, metavar="X", help="how sure it must be of a tag, 0 to 1 (default: 0.35)"
    )
    tagger.add_argument(
        "--model", type=Path, metavar="DIR", help="folder with model.onnx and selected_tags.csv"
    )
    tagger.add_argument(
        "--allow-download", action="store_true", help="download the usual model where it is not there"
    )


def _list(policy: Policy) -> str:
    return ", ".join(DEFAULT_KEEP[policy])


def _caption(arguments: argparse.Namespace, session: Session) -> Answer:
    _check_choice(arguments)
    from copier.app.captions import CaptionRequest, caption_pictures, pictures_at

    request = CaptionRequest(
        pictures_at(arguments.pictures),
        arguments.out,
        policy=Policy(arguments.policy),
        keep=None if arguments.keep is None else tuple(tag for tag in arguments.keep if tag),
        overwrite=arguments.overwrite,
    )
    written = caption_pictures(
        request, _captioner(arguments, session), observer=session.progress, cancel=session.stoppable()
    )
    rows = [{"picture": one.picture, "file": one.file, "said": one.said, "text": one.text} for one in written]
    data = [{name: str(value) for name, value in row.items()} for row in rows]
    text = table([(one.file.name, one.text or "(empty)") for one in written])
    return Answer(
        {"policy": request.policy.value, "captions": data}, f"{text}\n{len(written)} in {request.out}"
    )


def _check_choice(arguments: argparse.Namespace) -> None:
    if not arguments.tagger and (
        arguments.threshold is not None or arguments.model is not None or arguments.allow_download
    ):
        raise BadInput("--threshold, --model and --allow-download belong to --tagger: add it")
    if arguments.model is not None and arguments.allow_download:
        raise BadInput("--allow-download gets the usual model: leave out --model, or --allow-download")


def _captioner(arguments: argparse.Namespace, session: Session) -> Captioner:
    from copier.app.captions import CaptionFiles, OneText, Wd14Tagger

    if arguments.text is not None:
        return OneText(arguments.text)
    if arguments.source is not None:
        return CaptionFiles(arguments.source)
    given = {} if arguments.threshold is None else {"threshold": arguments.threshold}
    return Wd14Tagger(
        session.settings,
        model=arguments.model,
        allow_download=arguments.allow_download,
        **given,
    )
