"""``copier trainer``: the packages that training with sd-scripts needs, in a folder of their own."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from copier.cli.parser import Commands, Parser
from copier.cli.session import Answer, Session
from copier.cli.text import size, table

if TYPE_CHECKING:
    from copier.app.settings import Settings
    from copier.app.trainer import TrainerStatus

_PACKAGES = "the trainer's packages"


def register(commands: Commands) -> None:
    """Add the commands."""
    trainer = commands.group(
        "trainer",
        "what training with sd-scripts needs",
        """
        sd-scripts trains real checkpoints. It needs other versions of many packages than a WebUI has, so they
        go into a folder of their own in the data directory, and the WebUI's Python environment stays as it
        is; torch is taken from there. Removing them is deleting that folder. The tagger of sd-scripts, which
        `copier caption --tagger` runs, needs some more, in another folder.
        """,
    )
    parser = trainer.add(
        "install",
        "install or repair the trainer's packages, and fetch sd-scripts",
        """
        Install what is missing or out of date: sd-scripts, as a git submodule of this program, and its
        packages (about 110 MB to download, 400 MB on the disk). Use it before the first training, after an
        update of this program or of the WebUI's Python, or when 'trainer status' says so; it does nothing
        where everything is current. Nothing is installed into the Python that you name: only its pip and its
        torch are used. Ctrl-C stops it at any time, and what was there before stays.

        Without a network, name a folder with the wheels: PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels/. A folder of
        sd-scripts of your own is named by the environment variable COPIER_SD_SCRIPTS_DIR.
        """,
        (
            "install",
            "install --python ~/stable-diffusion-webui/venv/bin/python",
            "install --tagger",
            "install --again --json",
        ),
        _install,
    )
    _add_python(parser)
    parser.add_argument(
        "--tagger", action="store_true", help="also what the tagger needs (35 MB more to download)"
    )
    parser.add_argument("--again", action="store_true", help="install packages anew that are current")
    parser = trainer.add(
        "status",
        "what is installed, where, and for which Python",
        """
        Show whether the trainer's packages are there and current, what they take on the disk, which Python
        and torch will train, and where sd-scripts is and in which version. Use it when a training does not
        start; nothing is changed.
        """,
        ("status", "status --python ~/stable-diffusion-webui/venv/bin/python", "status --json"),
        _status,
    )
    _add_python(parser)
    trainer.add(
        "remove",
        "delete the trainer's packages",
        """
        Delete the trainer's packages, and the tagger's, for every Python, to get the room back. sd-scripts
        itself, the tagger's model and finished stages stay; 'trainer install' brings the packages back.
        """,
        ("remove",),
        _remove,
    )


def _add_python(parser: Parser) -> None:
    parser.add_argument(
        "--python",
        metavar="FILE",
        help="the Python that trains, such as the WebUI's (default: COPIER_PYTHON, or that of this program)",
    )


def _settings(arguments: argparse.Namespace, session: Session) -> Settings:
    settings = session.settings
    return replace(settings, python=arguments.python) if arguments.python else settings


def _install(arguments: argparse.Namespace, session: Session) -> Answer:
    from copier.app.trainer import install_trainer, trainer_status

    settings = _settings(arguments, session)
    session.kept = "nothing was installed, and what was there before is as it was"
    installed, said = install_trainer(
        settings,
        tagger=arguments.tagger,
        again=arguments.again,
        observer=session.progress,
        cancel=session.stoppable(),
    )
    if said:
        session.progress.line(said)
    status = trainer_status(settings)
    done = "installed" if installed else "already current: nothing was done (--again installs them anew)"
    return Answer({"installed": installed, **_json(status)}, f"{_PACKAGES} are {done}\n{_text(status)}")


def _status(arguments: argparse.Namespace, session: Session) -> Answer:
    from copier.app.trainer import trainer_status

    status = trainer_status(_settings(arguments, session))
    return Answer(_json(status), _text(status))


def _remove(arguments: argparse.Namespace, session: Session) -> Answer:
    from copier.app.trainer import remove_trainer

    removed = remove_trainer(session.settings)
    total = sum(count for _, count in removed)
    lines = [f"deleted {overlay.folder} ({size(count)})" for overlay, count in removed]
    return Answer(
        {"removed": [str(overlay.folder) for overlay, _ in removed], "bytes": total},
        "\n".join(lines) or f"there were none in {session.settings.trainer}",
    )


def _json(status: TrainerStatus) -> dict[str, Any]:
    scripts, interpreter, tagger = status.sd_scripts, status.interpreter, status.tagger
    return {
        "ready": status.ready,
        "state": status.state.value if status.state else None,
        "folder": str(status.overlay.folder) if status.overlay else None,
        "overlays": [
            {
                "folder": str(one.overlay.folder),
                "bytes": one.size,
                "packages": one.packages,
                "used": one.used,
            }
            for one in status.overlays
        ],
        "tagger": tagger
        and {
            "state": tagger.state.value,
            "folder": str(tagger.overlay.folder),
            "bytes": tagger.size,
            "model": str(tagger.model_folder) if tagger.model else None,
        },
        "python": {
            "path": interpreter.path,
            "version": interpreter.version,
            "platform": interpreter.platform,
            "torch": interpreter.torch or None,
            "cuda": interpreter.cuda or None,
        },
        "stand_in_for_torchvision": status.stand_in,
        "eight_bit_optimisers": status.eight_bit,
        "sd_scripts": scripts
        and {
            "folder": str(scripts.folder),
            "own": scripts.own,
            "version": scripts.version,
            "commit": scripts.commit or None,
        },
        "problems": list(status.problems),
    }


def _text(status: TrainerStatus) -> str:
    interpreter, scripts = status.interpreter, status.sd_scripts
    cuda = f", CUDA {interpreter.cuda}" if interpreter.cuda else ", without CUDA"
    rows = [
        ("Python", f"{interpreter.version}, {interpreter.path}"),
        ("torch", f"{interpreter.torch}{cuda}" if interpreter.torch else "none"),
        ("packages", status.state.value if status.state else "none for this Python"),
    ]
    rows += [
        ("" if one.used else "others", f"{one.packages} packages, {size(one.size)}, in {one.overlay.folder}")
        for one in sorted(status.overlays, key=lambda one: not one.used)
    ]
    if status.stand_in:
        rows.append(("torchvision", "stood in for: there is none that works with this torch"))
    if status.eight_bit:
        rows.append(("8-bit", "8-bit optimisers work"))
    if tagger := status.tagger:
        there = f", {size(tagger.size)}, in {tagger.overlay.folder}" if tagger.size else ""
        model = "and its model" if tagger.model else "without its model"
        rows.append(("tagger", f"{tagger.state.value}{there}, {model}"))
    own = " (your own)" if scripts and scripts.own else ""
    rows.append(("sd-scripts", f"{scripts.version}, {scripts.folder}{own}" if scripts else "none"))
    return "\n".join([table(rows), *(f"note: {problem}" for problem in status.problems)])
