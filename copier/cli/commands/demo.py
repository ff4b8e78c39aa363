"""``copier demo``: the whole method on the embedded checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from copier.cli.commands.run import add_seeds, execute
from copier.cli.parser import Commands
from copier.cli.session import Answer, Session


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "demo",
        "the whole method on the embedded checkpoint, measured",
        """
        Run the whole method for real, on a small embedded checkpoint and any CPU: draw an original, train
        the copier, check it at its gate, train the edit on top of it, and measure the LoRA beside a plain
        one. Use it to see that the method works, and how a report looks. It takes some minutes; a second
        call reuses every stage and takes seconds.
        """,
        ("demo", "demo --full --out demo", "demo --json --threads 2"),
        _demo,
        checkpoint=True,
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="also a second edit with the same copier, and the difference recipe",
    )
    add_seeds(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="folder of the outcome (default: demo)"
    )


def _demo(arguments: argparse.Namespace, session: Session) -> Answer:
    from copier.app.demo import demo_requests

    requests = demo_requests(
        session.checkpoint(),
        arguments.out,
        full=arguments.full,
        device=arguments.device,
        threads=arguments.threads,
    )
    return execute(requests, session, control=True, seeds=arguments.seeds)
