"""``python -m copier``: puts the command line and the parts that it may not import together."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event

from copier.cli.main import run_command
from copier.cli.session import Embedded, Session
from copier.errors import NotInstalled


def _checkpoint() -> Path:
    from copier.pocket.checkpoint import checkpoint_path

    return checkpoint_path()


def _install(webui: Path) -> list[Path]:
    from copier.pocket.install import install

    return install(webui)


def _serve(session: Session) -> None:
    if importlib.util.find_spec("gradio") is None:
        raise NotInstalled(
            "the page needs gradio, which is not installed: pip install gradio==4.40.0, or use a WebUI"
        )
    from copier.app.jobs import JobService
    from copier.app.ports import Security
    from copier.host.standalone import StandaloneHost
    from copier.ui.parts import Parts
    from copier.ui.standalone import Place, serve

    arguments, settings = session.arguments, session.settings
    host = StandaloneHost(
        settings,
        _checkpoint(),
        security=Security(listening=arguments.listen, insecure_access=arguments.insecure),
        device=arguments.device,
        threads=arguments.threads,
    )
    parts = Parts(host, JobService(settings, released=host.released), settings)
    place = Place(arguments.port, listen=arguments.listen)
    try:
        serve(parts, place, ready=lambda address: session.note(f"the tab is at {address}"), ended=Event())
    finally:
        host.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(argv, Embedded(_checkpoint, _install, _serve))


if __name__ == "__main__":
    sys.exit(main())
