"""Reader and writer against each other and against the safetensors library."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections import namedtuple

import pytest
import torch

from copier.checkpoint import reader as reader_module
from copier.checkpoint import writer as writer_module
from copier.checkpoint.dtypes import dtype_name, torch_dtype
from copier.checkpoint.header import ITEM_BYTES, read_header
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.writer import TensorWriter, data_digest, write_tensors
from copier.errors import BadCheckpoint, BadInput, UnknownName
from copier.temporary import replace_file

DTYPES = [name for name in ITEM_BYTES if name not in ("U16", "U32", "U64") or hasattr(torch, "uint16")]
"""torch before 2.3 has no unsigned integers but the smallest."""

PLAN = {"a": (torch.float32, (2, 2)), "b": ("F16", (3,))}


def sample():
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name in DTYPES:
        count = 12 * ITEM_BYTES[name]
        data = torch.randint(0, 2, (count,), generator=generator, dtype=torch.uint8)
        tensors[f"of.{name}"] = data.view(torch_dtype(name)).reshape(3, 4)
    tensors["scalar"] = torch.tensor(3.5)
    tensors["empty"] = torch.empty(0, 4, dtype=torch.bfloat16)
    tensors["transposed"] = torch.arange(6.0).reshape(2, 3).T
    return tensors


def same(left, right):
    equal_kind = left.dtype == right.dtype and left.shape == right.shape
    return equal_kind and bytes(writer_module.tensor_bytes(left)) == bytes(writer_module.tensor_bytes(right))


def craft(path, table, data=b"", *, length=None):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_what_is_written_is_read_back_in_every_dtype(tmp_path):
    tensors = sample()
    write_tensors(tmp_path / "t.safetensors", tensors, {"note": "héllo ✓"})
    with TensorReader(tmp_path / "t.safetensors") as reader:
        assert dict(reader.metadata) == {"note": "héllo ✓"}
        assert set(reader.keys()) == set(tensors)
        for key, tensor in tensors.items():
            assert same(reader.tensor(key), tensor)
            assert b"".join(bytes(part) for part in reader.raw(key)) == bytes(
                writer_module.tensor_bytes(tensor)
            )


def test_the_safetensors_library_reads_what_we_write_and_we_read_what_it_writes(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {key: value.contiguous() for key, value in sample().items()}
    write_tensors(tmp_path / "ours.safetensors", tensors, {"a": "b"})
    theirs = safetensors.load((tmp_path / "ours.safetensors").read_bytes())
    assert set(theirs) == set(tensors)
    assert all(same(theirs[key], tensors[key]) for key in tensors)
    (tmp_path / "theirs.safetensors").write_bytes(safetensors.save(tensors, {"a": "b"}))
    with TensorReader(tmp_path / "theirs.safetensors") as reader:
        assert dict(reader.metadata) == {"a": "b"}
        assert all(same(reader.tensor(key), tensors[key]) for key in tensors)


def test_raw_bytes_come_in_bounded_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_module, "CHUNK_BYTES", 7)
    write_tensors(tmp_path / "t.safetensors", {"x": torch.arange(5, dtype=torch.float32)})
    with TensorReader(tmp_path / "t.safetensors") as reader:
        pieces = [bytes(piece) for piece in reader.raw("x")]
    assert [len(piece) for piece in pieces] == [7, 7, 6]
    assert b"".join(pieces) == torch.arange(5, dtype=torch.float32).numpy().tobytes()


def test_tensors_start_at_multiples_of_their_item_size(tmp_path):
    write_tensors(tmp_path / "t.safetensors", sample())
    header = read_header(tmp_path / "t.safetensors")
    assert header.data_start % 8 == 0
    assert all(info.start % ITEM_BYTES[info.dtype] == 0 for info in header.tensors.values())


def test_the_data_digest_is_that_of_the_files_bytes_after_the_header(tmp_path):
    import hashlib

    write_tensors(tmp_path / "t.safetensors", sample(), {"k": "v"})
    start = read_header(tmp_path / "t.safetensors").data_start
    data = (tmp_path / "t.safetensors").read_bytes()[start:]
    assert data_digest(sample()) == hashlib.sha256(data).hexdigest()


def test_an_unknown_key_offers_the_nearest(tmp_path):
    write_tensors(tmp_path / "t.safetensors", {"weight": torch.zeros(1)})
    with TensorReader(tmp_path / "t.safetensors") as reader, pytest.raises(UnknownName, match="weight"):
        reader.tensor("wieght")


@pytest.mark.parametrize("name", DTYPES)
def test_dtype_names_translate_both_ways(name):
    assert dtype_name(torch_dtype(name)) == name
    assert torch.empty(0, dtype=torch_dtype(name)).element_size() == ITEM_BYTES[name]


GOOD = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
    ("table", "data", "message"),
    [
        ({"x": {**GOOD, "dtype": "F4"}}, b"ab", "dtype 'F4'"),
        ({"x": {**GOOD, "dtype": ["U8"]}}, b"ab", "dtype"),
        ({"x": {**GOOD, "shape": [-2]}}, b"ab", "shape"),
        ({"x": {**GOOD, "shape": [True, 2]}}, b"ab", "shape"),
        ({"x": {**GOOD, "shape": "2"}}, b"ab", "shape"),
        ({"x": {**GOOD, "shape": [3]}}, b"ab", "needs 3"),
        ({"x": {**GOOD, "data_offsets": [0, 2, 4]}}, b"ab", "data_offsets"),
        ({"x": {**GOOD, "data_offsets": [2, 0]}}, b"ab", "needs 2"),
        ({"x": {**GOOD, "data_offsets": [1, 3]}}, b"abc", "gap"),
        ({"x": GOOD, "y": {**GOOD, "data_offsets": [1, 3]}}, b"abc", "overlaps"),
        ({"x": GOOD}, b"a", "truncated: its tensors need 2 bytes.* has 1"),
        ({"x": GOOD}, b"abc", "1 bytes after its last tensor"),
        ({"x": {**GOOD, "more": 1}}, b"ab", "only"),
        ({"x": [1]}, b"ab", "only"),
        ({"x": GOOD, "__metadata__": {"a": 1}}, b"ab", "text to text"),
        ({"x": GOOD, "__metadata__": "a"}, b"ab", "text to text"),
        (b'{"x":' + json.dumps(GOOD).encode() + b',"x":' + json.dumps(GOOD).encode() + b"}", b"ab", "twice"),
        (b"{" * 100, b"", "JSON"),
        (b'{"x":' + b"[" * 100_000, b"", "JSON"),
        (b'{"x":' + b"9" * 10_000 + b"}", b"", "JSON|only"),
        (b'{"\xff":1}', b"", "JSON"),
        (b'{"\\ud800":' + json.dumps(GOOD).encode() + b"}", b"ab", "Unicode"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, table, data, message):
    with pytest.raises(BadCheckpoint, match=message):
        read_header(craft(tmp_path / "bad.safetensors", table, data))


def test_the_header_that_the_damaged_ones_vary_is_accepted(tmp_path):
    header = read_header(craft(tmp_path / "good.safetensors", {"x": GOOD}, b"ab"))
    assert header.tensors["x"].shape == (2,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes"),
        (b"PK\x03\x04" + bytes(100), "Checkpoint Merger"),
        (b"\x80\x02}q" + bytes(100), "Checkpoint Merger"),
        (b"GGUF" + bytes(100), "quantised"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a safetensors"),
        (struct.pack("<Q", 1 << 62) + b"{}", "at most 100000000"),
        (struct.pack("<Q", 5000) + b"{}", "needs 5008 bytes, the file has 10"),
    ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path, content, message):
    (tmp_path / "f.safetensors").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=message):
        read_header(tmp_path / "f.safetensors")


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path, length):
    text = json.dumps({"x": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}).encode().ljust(length)
    (tmp_path / "f.safetensors").write_bytes(struct.pack("<Q", length) + text + b"ab")
    assert list(read_header(tmp_path / "f.safetensors").tensors) == ["x"]


def test_a_missing_file_and_a_folder_are_bad_input(tmp_path):
    with pytest.raises(BadInput, match="no file"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(BadInput, match="not a file"):
        read_header(tmp_path)


def test_every_truncation_of_a_file_is_refused(tmp_path):
    write_tensors(tmp_path / "t.safetensors", {"x": torch.zeros(4), "y": torch.ones(2)})
    whole = (tmp_path / "t.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(BadCheckpoint):
            read_header(tmp_path / "cut.safetensors")


def test_random_damage_is_accepted_as_valid_or_refused_as_a_bad_checkpoint(tmp_path):
    write_tensors(tmp_path / "t.safetensors", {"x": torch.zeros(4), "y": torch.ones(2)})
    whole = (tmp_path / "t.safetensors").read_bytes()
    draw = torch.Generator().manual_seed(1)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(int(torch.randint(1, 4, (1,), generator=draw))):
            place = int(torch.randint(0, len(whole), (1,), generator=draw))
            damaged[place] = int(torch.randint(0, 256, (1,), generator=draw))
        (tmp_path / "d.safetensors").write_bytes(damaged)
        try:
            with TensorReader(tmp_path / "d.safetensors") as reader:
                for key in reader.keys():  # noqa: SIM118  # not a mapping
                    reader.tensor(key)
        except BadCheckpoint:
            refused += 1
    assert 100 < refused < 400


def test_nothing_stays_after_an_exception(tmp_path):
    with pytest.raises(KeyboardInterrupt), TensorWriter(tmp_path / "o.safetensors", PLAN) as writer:
        writer.write("a", torch.zeros(2, 2))
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mistake", ["order", "dtype", "shape", "short", "long", "unfinished"])
def test_what_departs_from_the_plan_is_refused_and_leaves_nothing(tmp_path, mistake):
    def run(writer):
        if mistake == "order":
            writer.write("b", torch.zeros(3, dtype=torch.float16))
        elif mistake == "dtype":
            writer.write("a", torch.zeros(2, 2, dtype=torch.float64))
        elif mistake == "shape":
            writer.write("a", torch.zeros(4))
        elif mistake == "short":
            writer.write_raw("a", [bytes(15)])
        elif mistake == "long":
            writer.write_raw("a", [bytes(16), bytes(1)])
        else:
            writer.write("a", torch.zeros(2, 2))

    with (
        pytest.raises(ValueError, match=r"plan|never written"),
        TensorWriter(tmp_path / "o.safetensors", PLAN) as writer,
    ):
        run(writer)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_unless_overwriting_is_allowed(tmp_path):
    target = tmp_path / "o.safetensors"
    write_tensors(target, {"x": torch.zeros(1)})
    before = target.read_bytes()
    with pytest.raises(BadInput, match="exists"):
        write_tensors(target, {"x": torch.ones(1)})
    assert target.read_bytes() == before
    write_tensors(target, {"x": torch.ones(1)}, overwrite=True)
    assert target.read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["o.safetensors"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    target = tmp_path / "o.safetensors"
    with pytest.raises(BadInput, match="exists"), TensorWriter(target, {"x": ("U8", (1,))}) as writer:
        target.write_bytes(b"mine")
        writer.write_raw("x", [b"a"])
    assert target.read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda _: usage(10, 0, 1_000_000))
    with pytest.raises(BadInput, match=r"needs 4\.0 MB .* 1\.0 MB are free: free some"):
        write_tensors(tmp_path / "o.safetensors", {"x": torch.zeros(1_000_000)})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_bad_input_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        write = full

    with (
        pytest.raises(BadInput, match="No space left"),
        TensorWriter(tmp_path / "o.safetensors", PLAN) as writer,
    ):
        monkeypatch.setattr(writer, "_file", Full(writer._file))
        writer.write("a", torch.zeros(2, 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("target", "message"), [("no/o.safetensors", "does not exist"), (".", "folder")])
def test_a_target_that_cannot_be_is_bad_input(tmp_path, target, message):
    with pytest.raises(BadInput, match=message):
        write_tensors(tmp_path / target, {"x": torch.zeros(1)})


KILLED = """
import os, sys
from copier.checkpoint.writer import TensorWriter
writer = TensorWriter(sys.argv[1], {"x": ("U8", (10,))})
writer.write_raw("x", [bytes(10)])
print("writing", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_leftover_of_a_killed_writer_goes_and_that_of_a_living_one_stays(tmp_path):
    target = tmp_path / "o.safetensors"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        write_tensors(target, {"x": torch.zeros(1)})
        assert len(list(tmp_path.iterdir())) == 2
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()
    assert len(list(tmp_path.iterdir())) == 2
    write_tensors(target, {"x": torch.zeros(1)}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["o.safetensors"]


def test_a_small_file_is_replaced_whole_and_a_failure_leaves_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "f.json"
    for content in (b"first", b"second, which is longer", b""):
        replace_file(target, content)
        assert target.read_bytes() == content
    target.write_bytes(b"old")

    def full(source, place):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="full"):
        replace_file(target, b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"f.json": b"old"}
