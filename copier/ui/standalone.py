"""The tab as a page of its own, without a WebUI."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from copier.errors import BadInput
from copier.ui import gradio_versions
from copier.ui.parts import Parts
from copier.ui.tab import build_tab

ROOT = Path(__file__).resolve().parent.parent.parent
"""Where style.css and javascript/ lie, which a WebUI loads by itself."""
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"


@dataclass(frozen=True)
class Place:
    """Where the page is served, and to whom: on the loopback interface alone unless ``listen``.

    ``accounts`` are names and passwords, one of which is asked for; empty: nobody is asked.
    """

    port: int = 7861
    listen: bool = False
    accounts: tuple[tuple[str, str], ...] = ()


def serve(
    parts: Parts,
    place: Place,
    *,
    add: Callable[[Any], None],
    ready: Callable[[str], None],
    ended: threading.Event,
) -> None:
    """Serve the page until ``ended`` is set. The queue is worked meanwhile.

    ``add`` is given the application, for what is served beside the page; then ``ready`` the address.

    Raises:
        BadInput: the port is taken.
    """
    style = (ROOT / "style.css").read_text(encoding="utf-8")
    blocks = build_tab(parts, style=style)
    script = (ROOT / "javascript" / "copier.js").read_text(encoding="utf-8")
    with blocks:
        gradio_versions.listen_script(blocks, "load", f"() => {{ {script} }}")
    parts.jobs.start()
    try:
        address, app = gradio_versions.launch(
            blocks,
            host=EVERYWHERE if place.listen else LOOPBACK,
            port=place.port,
            accounts=place.accounts,
        )
    except OSError as error:
        raise BadInput(
            f"the port {place.port} cannot be used ({error}): choose another one with --port"
        ) from error
    try:
        add(app)
        ready(address)
        ended.wait()
    finally:
        parts.jobs.close()
        gradio_versions.close(blocks)
