"""``copier cache`` and ``copier pocket``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copier.cli.bars import duration
from copier.cli.parser import Commands, finite
from copier.cli.session import Answer, Session
from copier.cli.text import size, table
from copier.errors import BadInput

if TYPE_CHECKING:
    from copier.app.cache import CachedStage

_DAY = 86_400
_KEEP_DAYS = 30.0


def register(commands: Commands) -> None:
    """Add the commands."""
    cache = commands.group(
        "cache",
        "the finished stages that runs reuse",
        """
        Finished stages are kept in the data directory, so that a run reuses what was made before. Use these
        commands to see them, or to get room back; a pruned stage is simply made again.
        """,
    )
    cache.add(
        "list",
        "list the finished stages",
        "List the finished stages, the newest first.",
        ("list", "list --json"),
        _list,
    )
    parser = cache.add(
        "prune",
        "delete old stages",
        "Delete finished stages that are older than some days, and leftovers of runs that were killed.",
        ("prune", "prune --keep-days 7", "prune --all"),
        _prune,
    )
    parser.add_argument(
        "--keep-days", type=finite, metavar="N", help=f"keep younger stages (default: {_KEEP_DAYS:g})"
    )
    parser.add_argument("--all", action="store_true", help="delete every stage")
    pocket = commands.group(
        "pocket",
        "the embedded checkpoint",
        """
        The embedded pocket checkpoint is a small Stable Diffusion 1.x that draws simple shapes, for trying
        things out on any machine.
        """,
    )
    parser = pocket.add(
        "install",
        "put the embedded checkpoint into a WebUI",
        """
        Copy the embedded checkpoint into a WebUI's folder for checkpoints, with the .yaml that AUTOMATIC1111
        needs for it. Use it to try the LoRAs of the demo in the WebUI.
        """,
        ("install ~/stable-diffusion-webui",),
        _install,
    )
    parser.add_argument("webui", type=Path, metavar="WEBUI_DIR", help="the folder that holds webui.py")


def _list(arguments: argparse.Namespace, session: Session) -> Answer:
    from copier.app.cache import cached_stages

    stages = cached_stages(session.settings)
    now = time.time()
    rows = [
        (one.key[:12], one.kind, one.name, size(one.size), duration(one.seconds), _age(now - one.created))
        for one in stages
    ]
    total = f"{len(stages)} stages, {size(sum(one.size for one in stages))}, in {session.settings.stages}"
    header = ("key", "kind", "stage", "size", "took", "age")
    return Answer(_json(stages, session), f"{table(rows, header)}\n{total}" if rows else total)


def _prune(arguments: argparse.Namespace, session: Session) -> Answer:
    if arguments.all and arguments.keep_days is not None:
        raise BadInput("both --all and --keep-days are given: give one of them")
    from copier.app.cache import prune

    days = 0.0 if arguments.all else _KEEP_DAYS if arguments.keep_days is None else arguments.keep_days
    removed = prune(session.settings, keep_days=days)
    text = f"deleted {len(removed)} stages, {size(sum(one.size for one in removed))}"
    return Answer(_json(removed, session), text)


def _json(stages: tuple[CachedStage, ...], session: Session) -> dict[str, Any]:
    return {
        "folder": str(session.settings.stages),
        "stages": [
            {
                "key": one.key,
                "kind": one.kind,
                "name": one.name,
                "bytes": one.size,
                "created": one.created,
                "seconds": one.seconds,
            }
            for one in stages
        ],
        "bytes": sum(one.size for one in stages),
    }


def _age(seconds: float) -> str:
    return f"{seconds / _DAY:.0f} days" if seconds > 2 * _DAY else duration(max(0.0, seconds))


def _install(arguments: argparse.Namespace, session: Session) -> Answer:
    files = [str(path) for path in session.embedded.install(arguments.webui)]
    advice = (
        "In the WebUI, refresh the list of checkpoints, choose it, and set width and height to 128. "
        "If you move the WebUI, run this again: the .yaml names its folder."
    )
    return Answer({"files": files}, "\n".join([*files, advice]))
