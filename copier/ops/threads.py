"""How an operation uses torch: exact products, and pieces of work side by side, each on one thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

import torch

from copier.algebra.approximation import Counted

Item = TypeVar("Item")
Result = TypeVar("Result")

_lock = threading.Lock()
_inside = 0
_before = (1, "highest")
"""Torch's number of threads and precision of products while no operation runs."""


@contextlib.contextmanager
def one_thread_each() -> Iterator[int]:
    """Torch works on one thread in this block; yields how many it had: how many pieces may run at once.

    The matrices of a LoRA are so small that OpenMP's threads spend their time waiting for each other,
    spinning: beside a program that also wants the cores, such as a WebUI that draws, the difference of two
    LoRAs took 11 CPU-seconds on two threads, and 0.8 on one. Products of float32 are exact in it: hosts
    allow TF32, which has 10 bits, for the whole process.

    Blocks may overlap, in several threads: the last to end restores both settings.
    """
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = torch.get_num_threads(), torch.get_float32_matmul_precision()
            torch.set_num_threads(1)
            torch.set_float32_matmul_precision("highest")
        _inside += 1
        threads = _before[0]
    try:
        yield threads
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.set_num_threads(_before[0])
                torch.set_float32_matmul_precision(_before[1])


def side_by_side(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], counted: Counted
) -> Iterator[Result]:
    """What ``work`` makes of each item, in order, by the threads of ``pool``; ``counted`` hears of each.

    Where one fails, or ``counted`` raises, those that have not begun are given up.
    """
    running = [pool.submit(work, item) for item in items]
    try:
        for number, one in enumerate(running, start=1):
            result = one.result()
            counted(number, len(running))
            yield result
    finally:
        for one in running:
            one.cancel()
