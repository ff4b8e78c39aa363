"""A long job watched by two pages: the server grows no larger, and the pages stay quick."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from tests.ui.running import Program, TabPage

MINUTES = float(os.environ.get("COPIER_TEST_WATCH_MINUTES", "0"))
WARM_MINUTES = 2
"""Until what is loaded on first use is loaded."""
GROWTH = 16.0
"""MB that the server may grow from then on."""
SECOND = 1.0
STEPS = 5000

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not MINUTES, reason="COPIER_TEST_WATCH_MINUTES=10 watches a long job for so long"),
]

_ASK = """() => new Promise(done => {
    const count = () => document.querySelector('#copier_run__pulse .copier-pulse')?.dataset.count;
    const before = count(), began = performance.now();
    document.querySelector('#copier_run__poll').click();
    const timer = setInterval(() => {
        if (count() === before) return;
        clearInterval(timer);
        done((performance.now() - began) / 1000);
    }, 5);
})"""
"""Seconds until the page has the answer to "what is new?"."""


def test_a_long_job_in_two_pages_leaves_the_server_flat_and_quick(
    program: Program, opened: Any, picture: Path
) -> None:
    first = opened()
    first.given(picture)
    first.short_recipe(STEPS)
    first.press("run__start")
    first.state("running")
    second = opened()
    second.state("running")
    sizes, waits, messages = _watched(program, (first, second))
    if first.page.is_enabled("#copier_run__interrupt"):
        first.press("run__interrupt")
    print("\nMB after each minute:", *(f"{one:.1f}" for one in sizes))
    for name, found in (("news", waits), ("a message beside its field", messages)):
        print(
            f"{name}: {len(found)} times, median {statistics.median(found):.2f} s, at most {max(found):.2f} s"
        )
    assert max(sizes[WARM_MINUTES:]) - sizes[WARM_MINUTES] < GROWTH, sizes
    assert max(waits) < SECOND, sorted(waits)[-5:]


def _watched(program: Program, pages: tuple[TabPage, ...]) -> tuple[list[float], list[float], list[float]]:
    """MB of the server after each minute, and the seconds that answers took."""
    sizes, waits, messages = [program.memory()], [], []
    began = time.monotonic()
    while time.monotonic() - began < 60 * MINUTES:
        for tab in pages:
            waits.append(tab.page.evaluate(_ASK))
            time.sleep(2)
        if time.monotonic() - began >= 60 * len(sizes):
            sizes.append(program.memory())
            messages.append(_message_seconds(pages[0]))
    return sizes, waits, messages


def _message_seconds(tab: TabPage) -> float:
    """From a wrong value to the message beside its field; the page waits half a second for more typing."""
    began = time.monotonic()
    tab.fill("train__training__steps", "0")
    tab.waits_for("#copier_train__training__steps .copier-beside")
    took = time.monotonic() - began
    tab.fill("train__training__steps", str(STEPS))
    tab.page.wait_for_selector("#copier_tab .copier-beside", state="detached")
    return took
