"""Torch's settings during an operation, and after several that overlapped."""

from __future__ import annotations

import contextlib
import threading

import torch

from copier.ops.threads import one_thread_each


def test_operations_that_overlap_leave_torch_as_it_was():
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with one_thread_each():
            inside.set()
            leave.wait()

    try:
        with contextlib.ExitStack() as first:
            assert first.enter_context(one_thread_each()) == threads
            thread = threading.Thread(target=other)
            thread.start()
            inside.wait()
        assert torch.get_float32_matmul_precision() == "highest"
        leave.set()
        thread.join()
        assert torch.get_float32_matmul_precision() == "high"
        found: list[int] = []
        fresh = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        fresh.start()
        fresh.join()
        assert found == [threads]
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
