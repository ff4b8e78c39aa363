"""Locks: one holder, whether a thread's, another object's or another process', and none that outlives it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from copier.errors import CopierError
from copier.lock import FileLock


def test_one_object_has_it_and_can_give_it_back(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "sub" / "lock"), FileLock(tmp_path / "sub" / "lock")
    assert not first.taken()
    assert not (tmp_path / "sub").exists(), "asking makes nothing"
    assert first.acquire()
    assert first.acquire()
    assert (first.held, second.held, second.taken(), second.acquire()) == (True, False, True, False)
    first.release()
    first.release()
    assert not second.taken()
    assert second.acquire(timeout=1)
    assert (first.taken(), second.taken()) == (True, True)
    second.release()


def test_those_who_ask_do_not_hinder_each_other(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    handle = lock._opened(shared=True)
    assert handle is not None
    assert not FileLock(tmp_path / "lock").taken()
    os.close(handle)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_killed_has_it_no_longer(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        FileLock(tmp_path / "lock").acquire()
        os.write(writer, b"!")
        signal.pause()
    assert os.read(reader, 1) == b"!"
    lock = FileLock(tmp_path / "lock")
    assert not lock.acquire(timeout=0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not lock.taken()
    assert lock.acquire()
    lock.release()
    os.close(reader)
    os.close(writer)


def test_a_place_that_cannot_be_locked_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CopierError, match=r"cannot be locked.*--data"):
        FileLock(tmp_path / "file" / "lock").acquire()
