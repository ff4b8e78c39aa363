"""Writes a safetensors file tensor by tensor; the file is whole or absent.

The bytes go to a temporary file in the target's folder (``temporary.py`` describes its name), which
is flushed to the disk, read back, and renamed to the target; on any exception it is deleted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch

from copier.checkpoint.dtypes import dtype_name
from copier.checkpoint.header import ITEM_BYTES, TensorInfo, read_header
from copier.checkpoint.straight import StraightFile
from copier.errors import BadInput
from copier.temporary import create_temporary, move_into_place, remove_leftovers

log = logging.getLogger(__name__)

Plan = Mapping[str, tuple["torch.dtype | str", Sequence[int]]]
"""Key -> dtype (torch's, or safetensors' name) and shape, in the order of writing."""

SPARE_BYTES = 1 << 20
"""Left free beside the file itself: file systems need room for their own books."""

WRITEBACK_BYTES = 32 << 20
"""The disk is set to work whenever so much was written, so that the final flush finds little left."""


class TensorWriter:
    """A safetensors file in the making; a context manager that commits when its block ends.

    ``plan`` says which tensors will come, in which order; ``write`` or ``write_raw`` must then be
    called once for each, or all their bytes be written ``in_pieces``. On construction nothing is written
    except the temporary file's header.

    Raises on construction:
        BadInput: the target exists and ``overwrite`` is false, its folder does not exist or is not
            writable, or the disk has not enough room; the message says how much is needed.
        UnknownName: a dtype that safetensors has no name for.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        plan: Plan,
        metadata: Mapping[str, str] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self._overwrite = overwrite
        self._metadata = _checked_metadata(metadata or {})
        self._infos = _lay_out(plan)
        self._pending = iter(self._infos.items())
        head = _encode_header(self._infos, self._metadata)
        self._head_bytes, self._written, self._flushing = len(head), 0, 0
        self._size = len(head) + max((info.end for info in self._infos.values()), default=0)
        _refuse_existing(self.path, overwrite=overwrite)
        if not self.path.parent.is_dir():
            raise BadInput(f"the folder {str(self.path.parent)!r} does not exist: create it first")
        remove_leftovers(self.path)
        self._check_room()
        self._file, self._temporary = self._create()
        try:
            self._put(head)
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self._commit()
        except BaseException:
            self.discard()
            raise

    def write(self, key: str, tensor: torch.Tensor) -> None:
        """Write the next tensor of the plan, from any device.

        Raises:
            ValueError: ``key`` is not the next one, or dtype or shape are not the planned ones.
            BadInput: the disk is full.
        """
        info = self._next(key)
        if dtype_name(tensor.dtype) != info.dtype or tuple(tensor.shape) != info.shape:
            raise ValueError(
                f"{key!r} is {dtype_name(tensor.dtype)} {tuple(tensor.shape)}, planned was "
                f"{info.dtype} {info.shape}"
            )
        self._put(tensor_bytes(tensor))

    def write_raw(self, key: str, chunks: Iterable[bytes | bytearray | memoryview]) -> None:
        """Write the next tensor of the plan from its bytes; raises as ``write``."""
        info = self._next(key)
        count = 0
        for chunk in chunks:
            count += len(chunk)
            if count > info.nbytes:
                break
            self._put(chunk)
        if count != info.nbytes:
            raise ValueError(f"{key!r} came with {count} bytes or more, planned were {info.nbytes}")

    @contextlib.contextmanager
    def in_pieces(self) -> Iterator[Pieces]:
        """Instead of ``write``: the tensors' bytes in pieces, from several threads, in any order.

        Raises:
            ValueError: when the block ends, if they were not as many bytes as planned.
            BadInput: the disk is full.
        """
        self._pending = iter(())
        with self._needing_room():
            pieces = Pieces(StraightFile(self._file, self._size), self._head_bytes, self._infos)
            yield pieces
            pieces.settle(self._size)
        self._file.seek(0, os.SEEK_END)

    def restate(self, metadata: Mapping[str, str]) -> None:
        """Replace the metadata, once more is known than when the file was begun.

        Raises:
            ValueError: it needs more bytes than what was planned: plan with values of the final length.
        """
        checked = _checked_metadata(metadata)
        head = _encode_header(self._infos, checked)
        spare = self._head_bytes - len(head)
        if spare < 0:
            raise ValueError(f"the metadata needs {-spare} bytes more than planned")
        (length,) = struct.unpack("<Q", head[:8])
        self._file.seek(0)
        self._put(struct.pack("<Q", length + spare) + head[8:] + b" " * spare)
        self._file.seek(0, os.SEEK_END)
        self._metadata = checked

    def discard(self) -> None:
        """Delete the temporary file; nothing is left. Harmless when repeated."""
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            self._temporary.unlink()

    def _next(self, key: str) -> TensorInfo:
        planned, info = next(self._pending, (None, None))
        if planned != key or info is None:
            raise ValueError(f"{key!r} was written where the plan has {planned!r}")
        return info

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        done = 0
        with self._needing_room():
            while done < len(view):
                done += self._file.write(view[done:])
        self._written += done
        if self._written - self._flushing >= WRITEBACK_BYTES:
            _start_writeback(self._file.fileno(), self._flushing, self._written - self._flushing)
            self._flushing = self._written

    @contextlib.contextmanager
    def _needing_room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise BadInput(self._no_room(f"({error.strerror})")) from error

    def _create(self) -> tuple[BinaryIO, Path]:
        try:
            return create_temporary(self.path)
        except OSError as error:
            raise BadInput(
                f"nothing can be written into {str(self.path.parent)!r} ({error.strerror}): "
                "choose another folder"
            ) from error

    def _check_room(self) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if free < self._size + SPARE_BYTES:
            raise BadInput(self._no_room(f"and {_megabytes(free)} are free"))

    def _no_room(self, why: str) -> str:
        return (
            f"{self.path.name!r} needs {_megabytes(self._size)} in {str(self.path.parent)!r} "
            f"{why}: free some or choose another folder"
        )

    def _commit(self) -> None:
        missing = next(self._pending, None)
        if missing is not None:
            raise ValueError(f"{missing[0]!r} and what follows it in the plan was never written")
        os.fsync(self._file.fileno())
        written = read_header(self._temporary)
        if dict(written.tensors) != self._infos or dict(written.metadata) != self._metadata:
            raise BadInput(f"{self.path.name!r} reads back differently from what was written: check the disk")
        _refuse_existing(self.path, overwrite=self._overwrite)
        try:
            move_into_place(self._file, self._temporary, self.path)
        except OSError as error:
            raise BadInput(
                f"{self.path.name!r} cannot be put in place ({error.strerror}): close what has it open, or "
                "choose another name"
            ) from error
        self._file.close()
        _sync_folder(self.path.parent)
        log.debug("wrote %s, %s", self.path.name, _megabytes(self._size))


class Pieces:
    """The tensors of a file in the making, to be written in pieces; ``TensorWriter.in_pieces`` makes it."""

    def __init__(self, file: StraightFile, head_bytes: int, infos: Mapping[str, TensorInfo]) -> None:
        self._file, self._head_bytes, self._infos = file, head_bytes, infos
        self._lock, self._written = threading.Lock(), 0

    def place(self, key: str) -> int:
        """Where in the file the tensor ``key`` begins."""
        return self._head_bytes + self._infos[key].start

    def write(self, data: torch.Tensor, place: int) -> None:
        """Write bytes (n,) at their place in the file; as ``StraightFile.write``."""
        self._file.write(data, place)
        with self._lock:
            self._written += len(data)

    def settle(self, size: int) -> None:
        """All is written, and the file has ``size`` bytes."""
        if self._written != size - self._head_bytes:
            raise ValueError(f"{self._written} bytes were written, {size - self._head_bytes} were planned")
        self._file.settle()


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write ``tensors`` to a safetensors file, wide dtypes first; raises as ``TensorWriter``."""
    ordered = file_order(tensors)
    plan: Plan = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in ordered.items()}
    with TensorWriter(path, plan, metadata, overwrite=overwrite) as writer:
        for key, tensor in ordered.items():
            writer.write(key, tensor)


def file_order(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, wide dtypes first, so that each starts at a multiple of its item size."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))


def data_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of the bytes that follow the header when ``write_tensors`` writes ``tensors``.

    kohya's ``sshs_model_hash``, which hosts show and compare.
    """
    digest = hashlib.sha256()
    for tensor in file_order(tensors).values():
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, as safetensors stores them."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise BadInput(f"the metadata {key!r}: {value!r} is not text: a header holds text only")
    return dict(metadata)


def _lay_out(plan: Plan) -> dict[str, TensorInfo]:
    infos: dict[str, TensorInfo] = {}
    position = 0
    for key, (dtype, shape) in plan.items():
        name = dtype_name(dtype)
        end = position + math.prod(shape) * ITEM_BYTES[name]
        infos[key] = TensorInfo(dtype=name, shape=tuple(shape), start=position, end=end)
        position = end
    return infos


def _encode_header(infos: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for key, info in infos.items():
        table[key] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start, info.end],
        }
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that the tensors start at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def _refuse_existing(path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise BadInput(f"{str(path)!r} is a folder: give the path of the file to write")
    if path.exists() and not overwrite:
        raise BadInput(f"{str(path)!r} exists: choose another name, or allow overwriting")


def _start_writeback(handle: int, start: int, count: int) -> None:
    """Let Linux begin to write dirty pages; this advice starts that and does not wait for it."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(handle, start, count, os.POSIX_FADV_DONTNEED)


def _sync_folder(folder: Path) -> None:
    """Make the rename durable; Windows has no handle for that."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
