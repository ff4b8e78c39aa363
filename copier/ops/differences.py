"""Differences of the tensors of two checkpoint files, read piece by piece."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator

import torch

from copier.algebra.randomised import PIECE
from copier.checkpoint.dtypes import torch_dtype
from copier.checkpoint.reader import TensorReader
from copier.errors import BadInput


class Differences:
    """Two open files, and memory for one difference that is used again and again; a context manager.

    ``largest`` is the number of elements of the largest tensor that ``matrix`` will be asked for.
    """

    def __init__(self, tuned: str | os.PathLike[str], base: str | os.PathLike[str], largest: int) -> None:
        with torch.inference_mode(False):  # a host's, which other threads do not share
            self._difference = torch.empty(largest, dtype=torch.float32)
            self._scratch = torch.empty(PIECE, dtype=torch.float32)
        with contextlib.ExitStack() as files:
            self._tuned = files.enter_context(TensorReader(tuned))
            self._base = files.enter_context(TensorReader(base))
            self._files = files.pop_all()

    def __enter__(self) -> Differences:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def none(self, key: str) -> bool:
        """Is the tensor ``key`` the same in both? Of one dtype byte for byte, else by value."""
        if self._tuned.info(key).dtype != self._base.info(key).dtype:
            return all(torch.equal(one.double(), other.double()) for one, other in self._pairs(key))
        chunks = zip(self._tuned.raw(key), self._base.raw(key), strict=True)
        return all(_same_bytes(one, other) for one, other in chunks)

    def matrix(self, key: str) -> tuple[torch.Tensor, float]:
        """tuned - base of the tensor ``key``, and the squared Frobenius norm of that.

        float32, in the base's shape with all axes but the first in one: (out, in * height * width). It is
        valid until the next call.

        Raises:
            BadInput: one of the tensors has NaN or infinite values, or the norm is no float32.
        """
        shape = self._base.info(key).shape
        whole = self._difference[: math.prod(shape)]
        position, energy = 0, 0.0
        for one, other in self._pairs(key):
            count = one.numel()
            piece, scratch = whole[position : position + count], self._scratch[:count]
            if torch.float64 in (one.dtype, other.dtype):
                piece.copy_(one.double() - other.double())
            else:
                # Converting with copy_ and then subtracting in float32 is four times as fast as at once.
                piece.copy_(one)
                piece.sub_(scratch.copy_(other))
            energy += float(torch.dot(piece, piece))
            position += count
        if not math.isfinite(energy):
            self._refuse(key)
        return whole.view(shape[0], -1), energy

    def _pairs(self, key: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(_pieces(self._tuned, key), _pieces(self._base, key), strict=True)

    def _refuse(self, key: str) -> None:
        for reader in (self._tuned, self._base):
            if not all(bool(torch.isfinite(piece.float()).all()) for piece in _pieces(reader, key)):
                raise BadInput(
                    f"{key!r} in {reader.path.name!r} has NaN or infinite weights: the checkpoint is broken"
                )
        raise BadInput(
            f"the difference of {key!r} is so large that its square is no float32: these are no two "
            "checkpoints of one model"
        )


def _pieces(reader: TensorReader, key: str) -> Iterator[torch.Tensor]:
    """The elements of a tensor, ``PIECE`` at a time, in the file's dtype; each valid until the next."""
    dtype = torch_dtype(reader.info(key).dtype)
    for chunk in reader.raw(key):
        yield from torch.split(torch.frombuffer(chunk, dtype=torch.uint8).view(dtype), PIECE)


def _same_bytes(one: memoryview, other: memoryview) -> bool:
    dtype = torch.uint8 if len(one) % 8 else torch.int64  # the wide one is six times as fast
    return torch.equal(torch.frombuffer(one, dtype=dtype), torch.frombuffer(other, dtype=dtype))
