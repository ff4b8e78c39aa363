"""The host's list of LoRAs, and what it remembers of their files.

Hosts keep what they read of a LoRA by its name, so a file that took the place of another under one name, or
came back after it was deleted, is not read again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from copier.errors import BadInput


def lora_folder() -> Path:
    """The host's folder of LoRAs."""
    from modules import paths, shared

    given = getattr(shared.cmd_opts, "lora_dir", None)
    return Path(given) if given else Path(paths.models_path) / "Lora"


def list_again() -> None:
    """Have the host read its LoRA folder."""
    networks = _networks()
    if networks is not None:
        networks.list_available_networks()


def tag(path: Path, weight: float) -> str:
    """What names the LoRA in a prompt.

    Raises:
        BadInput: the host knows LoRAs by their file names, and this one is in another folder, or there are
            two of that name.
    """
    folder = lora_folder()
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadInput(f"{path} is not in the LoRA folder {folder}: the WebUI draws with LoRAs from there")
    alike = [one for one in folder.rglob(f"*{path.suffix}") if one.stem == path.stem]
    if len(alike) > 1:
        raise BadInput(
            f"there are {len(alike)} LoRAs called {path.stem!r} in {folder}: give each a name of its own, "
            "for the WebUI knows them by it"
        )
    return f"<lora:{path.stem}:{weight:g}>"


def forget() -> None:
    """Have the host read LoRA files anew at its next generation. Its queue lock is held."""
    from modules import sd_models

    networks = _networks()
    if networks is None:
        return
    # A1111 keeps the last ones, and weights that it added to the model's.
    getattr(networks, "networks_in_memory", {}).clear()
    if hasattr(networks, "loaded_networks"):
        networks.loaded_networks.clear()
    model = sd_models.model_data.sd_model
    if hasattr(networks, "load_lora_state_dict"):
        networks.load_lora_state_dict.cache_clear()
    if hasattr(model, "forge_objects"):
        _forget_in_forge(model)
    elif hasattr(model, "modules"):
        for module in model.modules():
            if getattr(module, "network_current_names", ()):
                # Other names than any that can be wanted: the weights are restored, then added anew.
                module.network_current_names = (("", 0.0, 0.0, None),)


def _forget_in_forge(model: Any) -> None:
    """In this order, or Forge adds the new patches to the old ones."""
    model.current_lora_hash = "stale"
    for patcher in (model.forge_objects.unet, model.forge_objects.clip.patcher):
        loader = getattr(patcher, "lora_loader", None)
        if loader is not None:
            loader.loaded_hash = "stale"


def _networks() -> ModuleType | None:
    """The module of the host's own extension for LoRAs, which has no package; None where it is off."""
    found = sys.modules.get("networks")
    return found if hasattr(found, "list_available_networks") else None
