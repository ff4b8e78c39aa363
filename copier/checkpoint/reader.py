"""Reads the tensors of a safetensors file one at a time, each into memory of its own.

Nothing is mapped: mapped pages count as resident, and Forge renames a user's file when the usual
loader fails on it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import torch

from copier.checkpoint.dtypes import torch_dtype
from copier.checkpoint.header import Header, TensorInfo, open_checkpoint, parse_header
from copier.errors import BadCheckpoint, UnknownName

CHUNK_BYTES = 8 << 20
"""Size of the buffer in which ``raw`` hands out bytes."""


class TensorReader:
    """A safetensors file, open for reading, from several threads at once too; a context manager.

    Raises on construction what ``read_header`` raises.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file, self._lock = open_checkpoint(path), threading.Lock()
        try:
            self.header: Header = parse_header(self._file, self.path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; tensors that were read stay valid."""
        self._file.close()

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's ``__metadata__``; empty where it has none."""
        return self.header.metadata

    def keys(self) -> tuple[str, ...]:
        """All keys, in the order of their bytes in the file."""
        return tuple(self.header.tensors)

    def info(self, key: str) -> TensorInfo:
        """dtype, shape and place of a tensor; raises UnknownName."""
        info = self.header.tensors.get(key)
        if info is None:
            raise UnknownName(f"tensor in {self.path.name!r}", key, self.header.tensors)
        return info

    def tensor(self, key: str) -> torch.Tensor:
        """The tensor ``key`` on the CPU, in the file's dtype and shape, in memory of its own.

        Raises:
            UnknownName: no such key.
            BadCheckpoint: this torch lacks its dtype, or the file has shrunk since it was opened.
        """
        info = self.info(key)
        dtype = torch_dtype(info.dtype)
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=dtype)
        data = torch.empty(info.nbytes, dtype=torch.uint8)
        self._fill(data.numpy().data, info.start)
        return data.view(dtype).reshape(info.shape)

    def read_into(self, view: memoryview, key: str, start: int) -> None:
        """Fill ``view`` with the bytes of the tensor ``key`` from its byte ``start`` on.

        Raises:
            UnknownName: no such key.
            BadCheckpoint: the file has shrunk since it was opened.
        """
        self._fill(view, self.info(key).start + start)

    def raw(self, key: str) -> Iterator[memoryview]:
        """The bytes of the tensor ``key``, in pieces of at most ``CHUNK_BYTES``.

        All pieces share one buffer: each is valid only until the next is asked for.
        """
        info = self.info(key)
        buffer = memoryview(bytearray(min(CHUNK_BYTES, info.nbytes)))
        position = info.start
        while position < info.end:
            piece = buffer[: min(len(buffer), info.end - position)]
            self._fill(piece, position)
            yield piece
            position += len(piece)

    def _fill(self, view: memoryview, start: int) -> None:
        place, done = self.header.data_start + start, 0
        while done < len(view):
            try:
                count = self._read(view[done:], place + done)
            except OSError as error:
                raise BadCheckpoint(
                    f"{self.path.name!r} cannot be read ({error.strerror}): check the disk, or copy it again"
                ) from error
            if not count:
                raise BadCheckpoint(
                    f"{self.path.name!r} ended early while it was read: something else changed it"
                )
            done += count

    def _read(self, view: memoryview, place: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [view], place)
        with self._lock:
            self._file.seek(place)
            return int(self._file.readinto(view))  # type: ignore[attr-defined]
