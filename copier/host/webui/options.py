"""What the host's Settings page has of ours."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from copier.app.settings import Settings, default_data_folder
from copier.host.webui.security import security_of_host

log = logging.getLogger(__name__)

SECTION = ("copier", "Copier")
DATA, OUTPUT, IN_INFOTEXT = "copier_data", "copier_output", "copier_recipe_in_infotext"
SD_SCRIPTS, ACCELERATE = "copier_sd_scripts_dir", "copier_accelerate_config"
FOLDERS = (DATA, OUTPUT, SD_SCRIPTS, ACCELERATE)
_ONLY_HERE = "not heeded where others can reach the WebUI, unless with --enable-insecure-extension-access"


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
        SD_SCRIPTS: shared.OptionInfo(
            "", "A folder of sd-scripts of your own, in place of the one that Copier brings",
            component_args=hidden, section=SECTION,
        ).info(f"empty: COPIER_SD_SCRIPTS_DIR, or Copier's; {_ONLY_HERE}").needs_restart(),
        ACCELERATE: shared.OptionInfo(
            "", "A file that `accelerate config` wrote, to train on several GPUs", component_args=hidden,
            section=SECTION,
        ).info(f"empty: COPIER_ACCELERATE_CONFIG, or one device; {_ONLY_HERE}").needs_restart(),
        IN_INFOTEXT: shared.OptionInfo(
            True, "Write the recipe of Copier's LoRAs into the text of pictures that use them",
            section=SECTION,
        ).info("Copier reads it back: send the picture to its tab"),
    }  # fmt: skip
    for name, option in page.items():
        shared.opts.add_option(name, option)
    # With --hide-ui-dir-config nobody changes a folder by the host's API either.
    shared.opts.restricted_opts.update(FOLDERS)


def chosen(name: str, otherwise: Any) -> Any:
    """A value of the page, also before the page has been made."""
    from modules import shared

    value = shared.opts.data.get(name, otherwise)
    return otherwise if value in (None, "") else value


def settings_of_host() -> Settings:
    """Where the program keeps its files: the Settings page, the environment, or the platform's folder."""
    settings = Settings(_path(DATA) or default_data_folder())
    # Code is run from there: not on the word of someone who may sit elsewhere.
    if security_of_host().restricted:
        return settings
    return replace(
        settings,
        sd_scripts_dir=_path(SD_SCRIPTS) or settings.sd_scripts_dir,
        accelerate=_path(ACCELERATE) or settings.accelerate,
    )


def output_folder() -> Path:
    """Of runs and pictures."""
    return _path(OUTPUT) or _usual_output()


def _path(name: str) -> Path | None:
    given = chosen(name, "")
    return Path(str(given)).expanduser() if given else None


def _usual_output() -> Path:
    """Beside the host's own pictures."""
    from modules import paths

    return Path(paths.data_path) / "outputs" / "copier"
