"""How an operation uses the cores: several pieces of work side by side, each on one thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread_each() -> Iterator[int]:
    """Torch works on one thread in this block; yields how many it had: how many pieces may run at once.

    The matrices of a LoRA are so small that OpenMP's threads spend their time waiting for each other,
    spinning: beside a program that also wants the cores, such as a WebUI that draws, the difference of two
    LoRAs took 11 CPU-seconds on two threads, and 0.8 on one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
