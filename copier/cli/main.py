"""Parses the arguments, runs the command, and turns its outcome into output and an exit code."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from copier.cli.parser import build_parser
from copier.cli.session import Answer, Embedded, Session, StopSignals
from copier.errors import Cancelled, CopierError
from copier.version import program

OK, FAILED, STOPPED = 0, 1, 130


def run_command(argv: Sequence[str] | None, embedded: Embedded) -> int:
    """Run the command that ``argv`` (None: the process' own) asks for; the exit code.

    0 done, 1 failed, 2 bad input, 130 stopped. ``SystemExit`` comes only from --help, --version and
    arguments that cannot be parsed.
    """
    arguments = build_parser(_Version).parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if arguments.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s" if arguments.verbose else "%(message)s",
    )
    session = Session(arguments, embedded)
    try:
        with StopSignals(session):
            answer: Answer = arguments.handler(arguments, session)
        session.progress.finish()
        _print(answer, arguments)
    except (Cancelled, KeyboardInterrupt):
        _end(session, f"stopped: {session.kept}")
        return STOPPED
    except CopierError as error:
        _end(session, f"copier: {error}", arguments)
        return error.exit_code
    except BrokenPipeError:
        # Who read our output has gone; nothing may be flushed into it at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except Exception as error:
        text = f"copier: {_described(error)}"
        _end(session, text if arguments.verbose else f"{text} (--verbose shows where)", arguments)
        return FAILED
    return OK


def _print(answer: Answer, arguments: argparse.Namespace) -> None:
    # A pipe on Windows takes only the letters of one code page: then JSON is escaped, text made to fit.
    encoding = sys.stdout.encoding or "utf-8"
    if arguments.json:
        text = json.dumps(answer.data, indent=1, ensure_ascii=False, allow_nan=False)
        try:
            # Strictly: a file name that is no text would go through a lax stream as invalid UTF-8.
            escaped = codecs.lookup(encoding).name != "utf-8" or not text.encode()
        except UnicodeEncodeError:
            escaped = True
        print(json.dumps(answer.data, indent=1, allow_nan=False) if escaped else text)
    elif answer.text:
        print(answer.text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def _end(session: Session, text: str, arguments: argparse.Namespace | None = None) -> None:
    session.progress.finish()
    if arguments is not None and arguments.verbose:
        traceback.print_exc()
    session.progress.line(text)


def _described(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{place}"
    return f"{type(error).__name__}: {error}"


class _Version(argparse.Action):
    """--version: looked up only when asked for, because that takes a while."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(program())
        parser.exit()
