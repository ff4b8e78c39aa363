"""Stages in threads: their items, their errors and their end."""

from __future__ import annotations

import threading

import pytest

from copier.checkpoint.ahead import Buffers, in_thread


def numbers(buffers: Buffers, count: int, broken: int = -1):
    for number in range(count):
        if number == broken:
            raise OSError("broken")
        buffer = buffers.take()
        buffer[0] = number
        yield buffer


def doubled(items, buffers: Buffers):
    for item in items:
        result = buffers.take()
        result[0] = 2 * item[0]
        yield item, result


def stages() -> int:
    return sum(thread.name == "stage" for thread in threading.enumerate())


def run(count: int, *, broken: int = -1, stop: int = -1) -> list[int]:
    read, computed = Buffers(2, 1), Buffers(2, 1)
    found = []
    with (
        in_thread(numbers(read, count, broken), read) as first,
        in_thread(doubled(first, computed), read, computed) as second,
    ):
        for item, result in second:
            found.append(int(result[0]))
            if len(found) == stop:
                raise KeyboardInterrupt
            read.give(item)
            computed.give(result)
    return found


def test_items_come_in_order_through_few_buffers():
    assert run(50) == list(range(0, 100, 2))
    assert stages() == 0


@pytest.mark.parametrize("broken", [0, 1, 7])
def test_an_error_in_a_stage_comes_out_where_the_items_are_used(broken):
    with pytest.raises(OSError, match="broken"):
        run(20, broken=broken)
    assert stages() == 0


@pytest.mark.parametrize("stop", [1, 3, 20])
def test_whoever_leaves_early_leaves_no_thread(stop):
    with pytest.raises(KeyboardInterrupt):
        run(50, stop=stop)
    assert stages() == 0
