"""What the host calls, and when: at its start, when it builds its page, and again at every "Reload UI".

The queue of jobs is made once a process: a reload builds the page anew, and a training goes on through it.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copier.errors import CopierError

if TYPE_CHECKING:
    from copier.app.jobs import JobService
    from copier.app.settings import Settings
    from copier.host.webui.services import WebUiHost
    from copier.host.webui.turns import Shown

log = logging.getLogger(__name__)

TAB, TAB_ID = "Copier", "copier"
_PACKAGE = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Running:
    """The host, the queue of jobs, and where the program keeps its files."""

    host: WebUiHost
    jobs: JobService
    settings: Settings


_lock = threading.Lock()
_running: Running | None = None
_stamp: int | None = None


Tabs = list[tuple[Any, str, str]]
"""As ``on_ui_tabs`` wants them: blocks, label, id."""


def register(pocket_title: str, tab_with: Callable[[str], Tabs]) -> None:
    """Ask the host to call us. Nothing heavy is imported before it does.

    Args:
        pocket_title: the title in the metadata of the checkpoint that comes with the program.
        tab_with: the tab that says what failed, where ours cannot be built.

    Raises:
        CopierError: the files of the extension changed since they were loaded.
    """
    _require_unchanged()
    begin = functools.partial(running, pocket_title)
    page = _LatePage()

    def tabs() -> Tabs:
        try:
            return build(begin(), page)
        except Exception:
            log.exception("the tab cannot be built")
            return tab_with(traceback.format_exc())

    _ask("ui_settings", _add_options)
    _ask("before_ui", _add_axes)
    _ask("after_component", page.component)
    _ask("app_started", lambda demo, app: started(begin(), app))
    _ask("ui_tabs", tabs)


def _ask(kind: str, callback: Callable[..., Any]) -> None:
    """Have the host call ``callback`` when ``kind`` happens.

    What it offers for that, ``on_...``, takes from the stack which file asks, and looks for every caller
    through all modules of the process: 60 ms a call in A1111 1.10, four times that on a busy machine. So
    the file is named where that can be done (A1111 1.10, Forge).
    """
    from modules import script_callbacks

    add = getattr(script_callbacks, "add_callback", None)
    if add is None or "filename" not in inspect.signature(add).parameters:
        getattr(script_callbacks, f"on_{kind}")(callback)
        return
    add(script_callbacks.callback_map[f"callbacks_{kind}"], callback, category=kind, filename=__file__)


def recipe_script() -> Any:
    """The class that the host calls before it draws; the host looks for it in the file in ``scripts/``."""
    from modules import scripts

    class CopierRecipe(scripts.Script):  # type: ignore[misc]
        def title(self) -> str:
            return "Copier recipe"

        def show(self, is_img2img: bool) -> Any:  # noqa: FBT001
            return scripts.AlwaysVisible

        def process(self, p: Any, *args: Any) -> None:
            from copier.host.webui.infotext import add_recipe

            add_recipe(p)

    return CopierRecipe


def running(pocket_title: str) -> Running:
    """What runs in this process; made at the first call."""
    global _running
    with _lock:
        if _running is None:
            from copier.app.jobs import JobService
            from copier.host.webui.options import settings_of_host
            from copier.host.webui.services import WebUiHost

            settings = settings_of_host()
            host = WebUiHost(settings, pocket_title)
            jobs = JobService(settings, released=host.released, turn=host.turn)
            host.watch_jobs(lambda: stop_current(jobs), lambda: shown(jobs))
            _running = Running(host, jobs, settings)
        return _running


def build(parts: Running, page: _LatePage) -> Tabs:
    """The tab."""
    from copier.ui.parts import Parts
    from copier.ui.tab import build_tab

    links = page.links(parts.settings)
    return [(build_tab(Parts(parts.host, parts.jobs, parts.settings), links=links), TAB, TAB_ID)]


def started(parts: Running, app: Any) -> None:
    """The host serves: work the queue, and answer the API."""
    from copier.api import Services, add_routes
    from copier.host.webui.accounts import guard_of_host

    parts.jobs.start()
    add_routes(app, Services(parts.host, parts.jobs, parts.settings), guard_of_host())


def stop_current(jobs: JobService) -> None:
    """Stop the job that runs: someone pressed the host's Interrupt."""
    current = jobs.current()
    if current is not None and current.started is not None:
        jobs.cancel(current.id)


def shown(jobs: JobService) -> Shown:
    """What the host's progress says of the job that runs."""
    from copier.host.webui.turns import Shown

    current = jobs.current()
    if current is None:
        return Shown()
    stage = jobs.view(current.id).current
    if stage is None:
        return Shown(current.title)
    return Shown(f"{current.title}, {stage.name}", stage.step, stage.steps)


class _LatePage:
    """``HostPage``, made when the host builds its first component: not while it loads scripts."""

    def __init__(self) -> None:
        self._page: Any = None

    def component(self, component: Any, **options: Any) -> None:
        if options.get("elem_id"):
            self._made().component(component, **options)

    def links(self, settings: Settings) -> Any:
        return self._made().links(settings)

    def _made(self) -> Any:
        if self._page is None:
            from copier.host.webui.page import HostPage

            self._page = HostPage()
        return self._page


def _add_options() -> None:
    from copier.host.webui.options import add_options

    add_options()


def _add_axes() -> None:
    from copier.host.webui.axes import add_axes

    add_axes()


def _require_unchanged() -> None:
    """A reload runs the file in ``scripts/`` again and no more: new files beside old ones would be mixed."""
    global _stamp
    now = hash(tuple(sorted((str(one), one.stat().st_mtime_ns) for one in _PACKAGE.rglob("*.py"))))
    if _stamp is None:
        _stamp = now
    if now != _stamp:
        raise CopierError(
            "the extension was updated while the WebUI ran: restart the WebUI itself (close its window and "
            "start it again), for 'Reload UI' keeps the old version in memory"
        )
