"""The parser: global options, and commands that explain when to use them, with examples."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from copier.cli.session import Answer, Session
from copier.fields import LARGEST_SEED

Handler = Callable[[argparse.Namespace, Session], Answer]

_DESCRIPTION = """\
Train a LoRA that does one change to a picture, and nothing else (the copy-machine method).

You give two pictures, A and B, that differ in one thing. A first LoRA, the copier, learns to draw
A whatever the prompt; on top of it a second one learns B, and so can only learn the difference.
The gate checks the copier; the report measures what the result does, beside a plain LoRA's.
"""

_EPILOG = """\
start here:
  copier demo                               the whole method on the embedded checkpoint, no GPU
  copier run copier-quick-pocket --a-prompt "a red star on cyan background" --edit grayscale
  copier COMMAND --help                     what a command is for, with examples

exit codes: 0 done, 1 failed, 2 bad input (nothing was written), 130 stopped.
Results go to standard output, progress and notes to standard error.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that offers the nearest names and points to the help."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # argparse takes -1 and -0.5 for numbers, but -1e-3 only since Python 3.14.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: {message}\nmore: {self.prog} --help\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), names, n=3, cutoff=0.5)
        what = "command" if isinstance(action, argparse._SubParsersAction) else "choice"
        offer = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(names)}"
        raise argparse.ArgumentError(action, f"there is no {what} {value!r}; {offer}")


class Commands:
    """The place where each command is added."""

    def __init__(self, subparsers: Any, path: str = "copier") -> None:
        self._subparsers = subparsers
        self._path = path

    def add(
        self,
        name: str,
        summary: str,
        explanation: str,
        examples: Iterable[str],
        handler: Handler | None,
        *,
        checkpoint: bool = False,
    ) -> Parser:
        """A command's parser, with the global options, --json and, if asked, --checkpoint."""
        lines = "\n".join(f"  {self._path} {example}" for example in examples)
        parser: Parser = self._subparsers.add_parser(
            name,
            help=summary,
            description=textwrap.dedent(explanation).strip(),
            epilog=f"examples:\n{lines}" if lines else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if handler is not None:
            parser.set_defaults(handler=handler)
            parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        if checkpoint:
            parser.add_argument(
                "--checkpoint",
                type=Path,
                metavar="FILE",
                help="SD 1.x checkpoint, .safetensors (default: the embedded pocket checkpoint)",
            )
        add_global_options(parser, default=argparse.SUPPRESS)
        return parser

    def group(self, name: str, summary: str, explanation: str) -> Commands:
        """A command that has commands of its own."""
        parser = self.add(name, summary, explanation, (), None)
        inner = parser.add_subparsers(dest=f"{name}_command", metavar="COMMAND", required=True)
        return Commands(inner, f"{self._path} {name}")


def add_global_options(parser: argparse.ArgumentParser, *, default: Any = None) -> None:
    """The options of every command; they may also stand before the command."""

    def value(plain: Any) -> Any:
        return default if default is argparse.SUPPRESS else plain

    group = parser.add_argument_group("options of every command")
    group.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        default=value(None),
        help="where finished stages and logs are kept (default: COPIER_DATA, or the system's place)",
    )
    group.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default=value("auto"), help="where to compute"
    )
    group.add_argument(
        "--threads", type=positive, metavar="N", default=value(None), help="CPU threads (default: all)"
    )
    group.add_argument(
        "--verbose", action="store_true", default=value(False), help="log more; tracebacks of failures"
    )


def build_parser(version: type[argparse.Action]) -> Parser:
    """The whole parser; ``version`` is the action of --version."""
    from copier.cli.commands import (
        algebra,
        captions,
        demo,
        distill,
        jobs,
        pictures,
        recipes,
        run,
        tab,
        trainer,
        upkeep,
    )

    parser = Parser(
        prog="copier",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=version, nargs=0, help="print the version and end")
    add_global_options(parser)
    commands = Commands(
        parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    )
    for module in (demo, run, tab, jobs, recipes, pictures, distill, captions, algebra, trainer, upkeep):
        module.register(commands)
    return parser


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return number


def seed(text: str) -> int:
    """A seed: 0 to 4294967295."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: give a whole number from 0 to {LARGEST_SEED}")
    return number


def finite(text: str) -> float:
    """A finite number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return number


def weighted_file(text: str) -> tuple[Path, float]:
    """FILE or FILE=WEIGHT; without a weight it is 1. A file may have '=' in its own name."""
    name, separator, weight = text.rpartition("=")
    if not separator or Path(text).is_file():
        return Path(text), 1.0
    try:
        return Path(name), finite(weight)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: what follows '=' is the weight, a finite number, as in FILE=0.8"
        ) from None


def named_path(text: str) -> tuple[str, Path]:
    """NAME=PATH."""
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: write it as name=path, as in style=pictures/style")
    return name, Path(path)


def assignment(text: str) -> tuple[str, float]:
    """NAME=NUMBER."""
    name, separator, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        separator = ""
        number = 0.0
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: write it as name=number, as in strength=0.5")
    return name, number
