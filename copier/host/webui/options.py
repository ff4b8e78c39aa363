"""What the host's Settings page has of ours."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from copier.app.settings import Settings, default_data_folder

log = logging.getLogger(__name__)

SECTION = ("copier", "Copier")
DATA, OUTPUT, IN_INFOTEXT = "copier_data", "copier_output", "copier_recipe_in_infotext"


def add_options() -> None:
    """Put them into the page. The host keeps the values with its own."""
    from modules import shared

    hidden = getattr(shared, "hide_dirs", {})
    page: dict[str, Any] = {
        DATA: shared.OptionInfo(
            "", "Data directory: recipes, jobs, finished stages, sd-scripts' packages",
            component_args=hidden, section=SECTION,
        ).info(f"empty: {default_data_folder()}").needs_restart(),
        OUTPUT: shared.OptionInfo(
            "", "Folder of runs and of pictures that the tab draws", component_args=hidden, section=SECTION,
        ).info(f"empty: {_usual_output()}"),
        IN_INFOTEXT: shared.OptionInfo(
            True, "Write the recipe of Copier's LoRAs into the text of pictures that use them",
            section=SECTION,
        ).info("Copier reads it back: send the picture to its tab"),
    }  # fmt: skip
    for name, option in page.items():
        shared.opts.add_option(name, option)
    # With --hide-ui-dir-config nobody changes a folder by the host's API either.
    shared.opts.restricted_opts.update((DATA, OUTPUT))


def chosen(name: str, otherwise: Any) -> Any:
    """A value of the page, also before the page has been made."""
    from modules import shared

    value = shared.opts.data.get(name, otherwise)
    return otherwise if value in (None, "") else value


def settings_of_host() -> Settings:
    """Where the program keeps its files: the Settings page, the environment, or the platform's folder."""
    given = chosen(DATA, "")
    return Settings(Path(str(given)).expanduser() if given else default_data_folder())


def output_folder() -> Path:
    """Of runs and pictures."""
    given = chosen(OUTPUT, "")
    return Path(str(given)).expanduser() if given else _usual_output()


def _usual_output() -> Path:
    """Beside the host's own pictures."""
    from modules import paths

    return Path(paths.data_path) / "outputs" / "copier"
