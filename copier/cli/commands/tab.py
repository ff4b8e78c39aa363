"""``copier ui``: the tab as a page of its own."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from copier.cli.parser import Commands, positive
from copier.cli.session import Answer, Session


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "ui",
        "the tab in a browser, without a WebUI",
        """
        Serve the tab that the extension adds to a WebUI as a page of its own: draw an original, edit it,
        train and look at the result in a browser. It needs gradio, 3.41 to 4.40 (pip install gradio==4.40.0).
        Jobs go on when the browser is closed, and end with this command; they can be taken up again. The
        same is there for programs, as a REST API (docs/api.md).
        """,
        ("ui", "ui --port 7870", "ui --listen --auth-file accounts.txt"),
        _serve,
    )
    parser.add_argument(
        "--port", type=positive, default=7861, metavar="N", help="where the page is (default: 7861)"
    )
    parser.add_argument(
        "--listen",
        action="store_true",
        help="serve the whole network, not only this machine; paths then stay within the program's folders",
    )
    parser.add_argument(
        "--auth",
        action="append",
        default=[],
        metavar="NAME:PASSWORD",
        help="ask for a name and a password, for page and API; may be repeated. Others on this machine can "
        "read it here: COPIER_AUTH or --auth-file hide it",
    )
    parser.add_argument(
        "--auth-file", type=Path, metavar="FILE", help="the same from a file, one NAME:PASSWORD a line"
    )
    parser.add_argument(
        "--enable-insecure-extension-access",
        dest="insecure",
        action="store_true",
        help="with --listen: let others use any path, extra arguments and installations",
    )


def _serve(arguments: argparse.Namespace, session: Session) -> Answer:
    logging.getLogger("httpx").setLevel(logging.WARNING)
    session.kept = "jobs that ran are kept, and go on when they are asked to"
    session.embedded.serve(session)
    return Answer({}, "")
