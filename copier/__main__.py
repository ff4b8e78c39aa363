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
    from copier.api import PREFIX, Guard, Services, add_routes
    from copier.app.accounts import own_accounts
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
    accounts = own_accounts(arguments.auth, arguments.auth_file)
    parts = Parts(host, JobService(settings, released=host.released), settings)
    place = Place(arguments.port, listen=arguments.listen, accounts=accounts)
    services = Services(host, parts.jobs, settings)

    def ready(address: str) -> None:
        session.note(f"the tab is at {address}, the API at {address.rstrip('/')}{PREFIX}/docs")
        if arguments.listen and not accounts:
            session.note("everyone in the network can use both: --auth-file asks for a name and a password")

    try:
        serve(
            parts,
            place,
            add=lambda app: add_routes(app, services, Guard(accounts)),
            ready=ready,
            ended=Event(),
        )
    finally:
        host.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(argv, Embedded(_checkpoint, _install, _serve))


if __name__ == "__main__":
    sys.exit(main())
