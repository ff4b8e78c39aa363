"""What every test gets: no network, a fixed seed, and the marks that say where it can run."""

from __future__ import annotations

import importlib.util
import os
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sd_scripts

# Before anything imports torch or huggingface_hub, and inherited by the child processes of the tests. More
# threads than cores, or two processes that each take all cores, make these small models many times slower.
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
os.environ.setdefault("OMP_NUM_THREADS", str(min(4, _CORES)))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

TESTS = Path(__file__).parent
HOST_FOLDERS = ("l0", "checkpoint", "algebra", "images", "ops", "host310")
"""Folders of tests/ whose tests exercise only code that runs in a host's process."""

TORCH = importlib.util.find_spec("torch") is not None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """With the hosts' oldest packages (`make test-host`) the other folders cannot even be imported."""
    if "COPIER_HOST_FLOOR" not in os.environ or collection_path == TESTS:
        return None
    return collection_path.relative_to(TESTS).parts[0] not in HOST_FOLDERS or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(TESTS).parts[0] in HOST_FOLDERS:
            item.add_marker(pytest.mark.host)
        if item.get_closest_marker("slow") and "COPIER_HOST_FLOOR" in os.environ:
            item.add_marker(pytest.mark.skip(reason="slow: run once, with the project's own packages"))
        if item.get_closest_marker("sd_scripts"):
            folder, reason = sd_scripts.checkout()
            if folder is None:
                how = "name one with COPIER_SD_SCRIPTS_DIR=folder"
                item.add_marker(pytest.mark.skip(reason=f"{reason}: {how}"))
        if item.get_closest_marker("webui") and not os.environ.get("COPIER_TEST_WEBUI"):
            item.add_marker(pytest.mark.skip(reason="drives a WebUI: set COPIER_TEST_WEBUI to its address"))
        if item.get_closest_marker("gpu") and not _cuda():
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    """Without torch (Python 3.10, see tests/host310) what imports it is skipped, not failed."""
    report = yield
    if not TORCH and report.failed and "No module named 'torch'" in report.longreprtext:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, "Skipped: torch is not installed in this environment")
    return report


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers for every test, whichever ran before it."""
    random.seed(0)
    for name in ("numpy", "torch"):
        module = sys.modules.get(name)
        if name == "numpy" and module is not None:
            module.random.seed(0)
        elif module is not None:
            module.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread in this module: for tests that fork, or that do very much that is very small."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def offline() -> Iterator[None]:
    """A connection to anything but this machine is an error, not a slow test."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        internet = self.family in (socket.AF_INET, socket.AF_INET6)
        if internet and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"a test tried to reach {address[0]!r}: tests run without network")
        connect(self, address)

    socket.socket.connect = local_only  # type: ignore[method-assign,assignment]
    yield
    socket.socket.connect = connect  # type: ignore[method-assign]


def _cuda() -> bool:
    if not TORCH:
        return False
    import torch

    return torch.cuda.is_available()
