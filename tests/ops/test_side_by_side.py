"""What operations do at once: hashing beside the work, and one thread for each piece of it."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from copier.errors import BadInput, Cancelled
from copier.ops.combine import combine
from copier.ops.digests import described_inputs
from copier.ops.threads import one_thread_each
from copier.progress import CancelToken


def test_inputs_are_hashed_while_the_block_runs_and_named_in_order():
    started, release = threading.Event(), threading.Event()

    def digest(path, *, cancel=None):
        started.set()
        assert release.wait(10)
        return f"hash of {path}"

    with described_inputs([("a", 1.0), ("b", -0.5)], digest) as inputs:
        assert started.wait(10)
        release.set()
        files = inputs()
    assert [(file.path, file.sha256, file.ratio) for file in files] == [
        ("a", "hash of a", 1.0),
        ("b", "hash of b", -0.5),
    ]


def test_a_digest_that_fails_fails_the_operation_and_is_silent_where_another_error_comes_first():
    def digest(path, *, cancel=None):
        raise OSError(f"{path} cannot be read")

    with (
        pytest.raises(OSError, match="a cannot be read"),
        described_inputs([("a", 1.0)], digest) as inputs,
    ):
        inputs()
    with pytest.raises(BadInput), described_inputs([("a", 1.0)], digest):
        raise BadInput("first")


def test_hashing_ends_with_the_block_and_a_stop_is_heard_while_it_is_waited_for():
    stop, ended = CancelToken(), threading.Event()

    def digest(path, *, cancel=None):
        while not cancel.cancelled:
            stop.cancel()
            time.sleep(0.01)
        ended.set()
        cancel.check()

    with pytest.raises(Cancelled), described_inputs([("a", 1.0)], digest, stop) as inputs:
        inputs()
    assert ended.is_set()


def test_torch_has_its_threads_again_after_the_block_and_after_an_error(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_thread_each() as threads:
            assert (threads, torch.get_num_threads()) == (3, 1)
        with pytest.raises(BadInput):
            combine([(tmp_path / "missing.safetensors", 1.0)], tmp_path / "out.safetensors")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
