"""The host's model out of memory while a job runs, and back afterwards.

Nothing here keeps a reference to the model: it could not be freed then.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Protocol

from copier.host.webui.flavour import is_forge

log = logging.getLogger(__name__)


class Memory(Protocol):
    """How a host frees its memory; its queue lock is held."""

    def free(self) -> None:
        """Put the models that are loaded out of the memory of card and machine."""

    def bring_back(self) -> None:
        """As it was before ``free``, or so that the next generation loads what it needs."""


def memory_of_host() -> Memory:
    """That of the host that runs this."""
    if is_forge():
        return ForgeMemory()
    return EarlyForgeMemory() if _EARLY_FORGE in sys.modules else LoadedMemory()


_EARLY_FORGE = "ldm_patched.modules.model_management"
"""What Forge's first version had in the place of ``backend.memory_management``."""


class LoadedMemory:
    """A1111."""

    def __init__(self) -> None:
        self._was_loaded = False

    def free(self) -> None:
        """Give every loaded model away; the host then has none, as before its first one.

        ``send_model_to_trash`` alone would leave a model without weights that the host takes for its own.
        """
        from modules import devices, sd_hijack, sd_models, sd_vae

        data = sd_models.model_data
        current = data.sd_model
        self._was_loaded = current is not None
        loaded = [one for one in getattr(data, "loaded_sd_models", ()) if one is not current]
        if current is not None:
            sd_hijack.model_hijack.undo_hijack(current)
            loaded.append(current)
        data.sd_model = None
        data.loaded_sd_models.clear()
        # The host's cache of weights in RAM, and the autoencoder that another one stands in for.
        sd_models.checkpoints_loaded.clear()
        sd_vae.delete_base_vae()
        sd_vae.clear_loaded_vae()
        while loaded:
            sd_models.send_model_to_trash(loaded.pop())
        del current
        gc.collect()
        devices.torch_gc()

    def bring_back(self) -> None:
        """Load the chosen checkpoint again, where one was loaded."""
        if self._was_loaded:
            from modules import sd_models

            sd_models.reload_model_weights()


class EarlyForgeMemory(LoadedMemory):
    """Hosts made from Forge's first version, with A1111's list and a memory management (reForge, classic).

    Read, not run.
    """

    def free(self) -> None:
        """Forget the models, then have the memory management give away what it holds.

        ``send_model_to_trash`` does nothing there, and the models are not hijacked.
        """
        from modules import sd_models

        management = sys.modules[_EARLY_FORGE]
        self._was_loaded = sd_models.model_data.sd_model is not None
        sd_models.model_data.sd_model = None
        sd_models.model_data.loaded_sd_models.clear()
        sd_models.checkpoints_loaded.clear()
        management.unload_all_models()
        gc.collect()
        management.soft_empty_cache()


class ForgeMemory:
    """Forge: it loads at each generation what is not loaded."""

    def free(self) -> None:
        """Put Forge's own stand-in for "nothing is loaded" in the model's place.

        Without an empty ``forge_hash`` it would take the stand-in for the checkpoint, and every later
        generation would fail; ``unload_model_weights`` alone would keep the weights in RAM.
        """
        from backend import memory_management
        from modules import sd_models

        sd_models.model_data.set_sd_model(sd_models.FakeInitialModel())
        sd_models.model_data.forge_hash = ""
        memory_management.unload_all_models()
        gc.collect()
        memory_management.soft_empty_cache()

    def bring_back(self) -> None:
        """Nothing: the next generation loads the checkpoint, as Forge's first one does."""


def return_freed_memory() -> None:
    """Have the C library give the system what was freed.

    glibc keeps freed blocks below a threshold, and raises that to the size of the largest one that was freed,
    up to 32 MB: from a model's second loading on it would keep most of its tensors. Elsewhere this does
    nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    # Other C libraries have no such function.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def freed(memory: Memory, cleanup: Callable[[], None]) -> Iterator[None]:
    """While the block runs the host has no model in memory. Its queue lock is held.

    ``cleanup`` is called once the model is away. That the model cannot be brought back is logged and is no
    failure of the block: the host's next generation tries again.
    """
    try:
        memory.free()
        cleanup()
        return_freed_memory()
        yield
    finally:
        try:
            memory.bring_back()
        except Exception:
            log.exception("the WebUI could not load its checkpoint again; its next generation tries")
