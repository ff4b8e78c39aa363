"""Files that are written in pieces: whatever the order, the threads and the system, the bytes are right."""

from __future__ import annotations

import errno
import itertools
import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from copier.checkpoint import straight
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.straight import BLOCK, StraightFile, block_memory
from copier.checkpoint.writer import TensorWriter, write_tensors
from copier.errors import BadInput

SIZE = 40 * BLOCK + 123


def pieces(seed):
    """Places and lengths of pieces that cover SIZE bytes, in disorder."""
    draw = random.Random(seed)
    cuts = sorted({0, SIZE, *(draw.randrange(SIZE) for _ in range(9)), *(BLOCK * n for n in range(3))})
    found = list(itertools.pairwise(cuts))
    draw.shuffle(found)
    return found


def write(path, content, order):
    """``content`` in pieces, from three threads."""

    def put(piece):
        first, last = piece
        memory = block_memory(BLOCK + last - first)[first % BLOCK :][: last - first]
        memory.copy_(torch.frombuffer(content, dtype=torch.uint8)[first:last])
        written.write(memory, first)

    with open(path, "xb", buffering=0) as file, ThreadPoolExecutor(3) as threads:
        written = StraightFile(file, SIZE)
        list(threads.map(put, order))
        written.settle()
        written.settle()
    assert path.read_bytes() == bytes(content)


@pytest.fixture
def content():
    return bytearray(random.Random(1).randbytes(SIZE))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("long", [0, SIZE + 1])
def test_pieces_in_any_order_make_the_file(tmp_path, monkeypatch, content, seed, long):
    monkeypatch.setattr(straight, "LONG", long)
    write(tmp_path / "file", content, pieces(seed))


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no way past its cache of files")
def test_a_file_system_that_refuses_gets_it_the_ordinary_way(tmp_path, monkeypatch, content):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(straight, "LONG", 0)
    real, refused = os.pwrite, []

    def refusing(handle, data, place):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(place)
            raise OSError(errno.EINVAL, "no")
        return real(handle, data, place)

    monkeypatch.setattr(os, "pwrite", refusing)
    write(tmp_path / "file", content, pieces(3))
    assert refused


def test_systems_without_these_calls_write_and_read_the_same(tmp_path, monkeypatch, content):
    for name in ("pwrite", "preadv", "posix_fallocate", "O_DIRECT"):
        monkeypatch.delattr(os, name, raising=False)
    write(tmp_path / "file", content, pieces(4))
    write_tensors(tmp_path / "a.safetensors", {"a": torch.arange(9.0)})
    with TensorReader(tmp_path / "a.safetensors") as reader:
        assert torch.equal(reader.tensor("a"), torch.arange(9.0))


def test_memory_that_does_not_fit_the_place_is_refused(tmp_path):
    with open(tmp_path / "file", "xb", buffering=0) as file:
        written = StraightFile(file, SIZE)
        with pytest.raises(ValueError, match="does not fit the place 8"):
            written.write(block_memory(100), 8)


def test_a_writer_wants_every_byte(tmp_path):
    with (
        pytest.raises(ValueError, match="0 bytes were written, 8 were planned"),
        TensorWriter(tmp_path / "a.safetensors", {"a": ("F32", (2,))}) as writer,
        writer.in_pieces(),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_found_at_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with (
        pytest.raises(BadInput, match=r"needs .* MB .*No space left on device.*free some"),
        TensorWriter(tmp_path / "a.safetensors", {"a": ("F32", (2,))}) as writer,
        writer.in_pieces(),
    ):
        pytest.fail("a piece was asked for")
    assert list(tmp_path.iterdir()) == []
