"""What the host loads: registers the tab and the hooks. Whatever fails here becomes a tab that says so."""

import html
import traceback
from pathlib import Path

from modules import script_callbacks

ROOT = Path(__file__).resolve().parent.parent


def tab_with(problem: str) -> list:
    """The tab when there is none."""
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.HTML(f"<h3>Copier could not start</h3><pre>{html.escape(problem)}</pre>")
    return [(blocks, "Copier", "copier")]


def tell(problem: str) -> None:
    """Say it in the console and in the tab."""
    print(f"Copier could not start: {problem}")
    script_callbacks.on_ui_tabs(lambda: tab_with(problem))


try:
    import copier

    found = Path(copier.__file__ or "an unknown place").resolve().parent
    if found != ROOT / "copier":
        # PyPI has an unrelated package of this name: templates for projects.
        tell(
            f"the Python package 'copier' that was imported lies in {found}, not in {ROOT / 'copier'}; "
            "another package of that name is installed in this environment: remove it (pip uninstall copier)"
        )
    else:
        from copier.host.webui.registration import recipe_script, register
        from copier.pocket.checkpoint import TITLE

        register(TITLE, tab_with)
        # The host looks for its scripts among the names of this file.
        CopierRecipe = recipe_script()
except Exception:
    tell(traceback.format_exc())
