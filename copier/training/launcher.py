"""Starts a script of sd-scripts in a child process; a program of its own, not to be imported by the others.

    python launcher.py --sd-scripts DIR --overlay DIR --script train_network.py [...] -- ARGUMENTS

Any Python runs it, with the standard library only: it puts the overlay and sd-scripts on the path itself,
because embeddable Pythons ignore PYTHONPATH. Then, in this order: it ties its life to that of the parent
(``--parent``), writes UTF-8, mends one bug of sd-scripts, and runs the script as ``__main__`` with
ARGUMENTS. Without ``--skip-init`` and base weights the script computes what it computes alone, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import importlib.abc
import importlib.machinery
import io
import json
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_LISTED = "__listed__"
_LOADER = "load_models_from_stable_diffusion_checkpoint"

Patch = Callable[[ModuleType], None]


def die_with_parent(parent: int) -> None:
    """End this process, without any clean-up, as soon as the process ``parent`` ends.

    On Linux the kernel does it. It counts the *thread* that started this process as the parent: that thread
    must wait for it. Elsewhere, and where another process stands in between (a wrapper around Python),
    a thread waits for the end of standard input, a pipe whose other end only the parent holds. On Windows
    the parent holds a job object instead: a read that waits would block what the script starts there.
    """
    if sys.platform == "win32":
        return
    above = os.getppid()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != above:  # it ended before the kernel knew
            os._exit(1)
        if above == parent:
            return
    threading.Thread(target=_end_with_input, daemon=True).start()


def _end_with_input() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1 << 16):
            pass
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # with what the script started
    os._exit(1)


def search_path(first: Sequence[str], path: Sequence[str]) -> list[str]:
    """``path`` with ``first`` before it, without this file's folder: its modules are none of the script's."""
    own = os.path.dirname(os.path.realpath(__file__))
    return [*first, *(folder for folder in path if os.path.realpath(folder) != own and folder not in first)]


class Extended(list[Any]):
    """A list that ``+=`` leaves as it is: the name on the left becomes a longer copy."""

    def __iadd__(self, other: Any) -> list[Any]:  # type: ignore[override, misc]
        return [*self, *other]


def mend_network(module: ModuleType) -> None:
    """Keep the networks of one process apart, in a module of ``networks/``.

    A constructor there takes the class's ``..._TARGET_REPLACE_MODULE`` and extends it in place by ``+=``
    where the network has convolutions, or comes from a file, as base weights do (v0.10.1, ``lora.py``
    1038, ``dylora.py``, ``lora_fa.py``, ``oft.py``): every later network then has 36 modules more.
    """
    for kind in vars(module).values():
        if isinstance(kind, type) and kind.__module__ == module.__name__:
            for name, value in list(vars(kind).items()):
                if "TARGET_REPLACE_MODULE" in name and type(value) is list:
                    setattr(kind, name, Extended(value))


def skip_initialisation(module: ModuleType) -> None:
    """Leave new weights as they are while ``library.model_util`` loads a checkpoint over all of them.

    They are loaded strictly: one that the file lacks is an error, never a weight without a value. (SDXL's
    loader builds its models without memory and has nothing to skip.)
    """
    load = getattr(module, _LOADER, None)
    if load is None:
        return

    @functools.wraps(load)
    def loaded(*arguments: Any, **options: Any) -> Any:
        try:
            from transformers.modeling_utils import no_init_weights
        except ImportError:  # another version of it: only time is lost
            return load(*arguments, **options)
        with no_init_weights():
            return load(*arguments, **options)

    setattr(module, _LOADER, loaded)


class Mender(importlib.abc.MetaPathFinder):
    """Applies ``patch_for(name)`` to each module right after it was executed."""

    def __init__(self, patch_for: Callable[[str], Patch | None]) -> None:
        self._patch_for = patch_for

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec that Python would find, with the patch in it; None where there is none."""
        patch = self._patch_for(fullname)
        if patch is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            execute = spec.loader.exec_module

            def patched(module: ModuleType) -> None:
                execute(module)
                patch(module)

            spec.loader.exec_module = patched  # type: ignore[method-assign]
        return spec


def patch_for(name: str, *, skip_init: bool) -> Patch | None:
    """What is done to the module ``name``."""
    if name.startswith("networks."):
        return mend_network
    if skip_init and name == "library.model_util":
        return skip_initialisation
    return None


def use_utf8() -> None:
    """Write UTF-8 whatever the system's code page, and each line at once although it is no terminal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def option_names(script: Path) -> list[str]:
    """The option strings of the script's own parser (``setup_parser``), such as ``--network_dim``."""
    with contextlib.redirect_stdout(sys.stderr):
        parser = runpy.run_path(str(script), run_name=_LISTED)["setup_parser"]()
    return sorted(option for action in parser._actions for option in action.option_strings)


def under_accelerate(arguments: argparse.Namespace) -> list[str]:
    """The arguments of ``accelerate launch`` that start this program again, once for each device."""
    command = ["--config_file", str(arguments.accelerate), os.path.realpath(__file__)]
    command += ["--sd-scripts", str(arguments.sd_scripts), "--script", arguments.script]
    for folder in arguments.overlay:
        command += ["--overlay", str(folder)]
    if arguments.stand_in:
        command += ["--stand-in", str(arguments.stand_in)]
    command += ["--parent", str(os.getpid())]
    if arguments.skip_init:
        command.append("--skip-init")
    return [*command, "--", *arguments.arguments]


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; whatever follows the first ``--`` is the script's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sd-scripts", type=Path, required=True, help="its folder")
    parser.add_argument("--script", required=True, help="a file in it, such as train_network.py")
    parser.add_argument(
        "--overlay", type=Path, action="append", default=[], help="a folder with packages that it needs"
    )
    parser.add_argument("--stand-in", type=Path, help="a folder with a package in place of torchvision")
    parser.add_argument("--parent", type=int, help="the process that this one must not outlive")
    parser.add_argument("--skip-init", action="store_true", help="of weights that a checkpoint overwrites")
    parser.add_argument("--accelerate", type=Path, help="a configuration of accelerate: several devices")
    parser.add_argument("--list-options", action="store_true", help="print the script's options as JSON")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    ours = parser.parse_args(arguments[:end])
    ours.arguments = list(arguments[end + 1 :])
    return ours


def main() -> None:
    """Run the script; ends as it ends."""
    arguments = parsed(sys.argv[1:])
    if arguments.parent:
        die_with_parent(arguments.parent)
    use_utf8()
    first = (arguments.stand_in, *arguments.overlay, arguments.sd_scripts)
    sys.path[:] = search_path([str(folder.resolve()) for folder in first if folder], sys.path)
    sys.meta_path.insert(0, Mender(functools.partial(patch_for, skip_init=arguments.skip_init)))
    script = arguments.sd_scripts.resolve() / arguments.script
    if arguments.list_options:
        print(json.dumps(option_names(script)))  # noqa: T201  # this is its answer
    elif arguments.accelerate:
        sys.argv = ["accelerate", *under_accelerate(arguments)]
        runpy.run_module("accelerate.commands.launch", run_name="__main__", alter_sys=True)
    else:
        sys.argv = [str(script), *arguments.arguments]
        runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
