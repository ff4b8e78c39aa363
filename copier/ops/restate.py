"""Copies a safetensors file with other metadata; the tensors stay as they are, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Mapping

from copier.checkpoint.reader import TensorReader
from copier.checkpoint.writer import TensorWriter


def restate(
    source: str | os.PathLike[str], out: str | os.PathLike[str], metadata: Mapping[str, str]
) -> None:
    """Write ``source`` to ``out``, which must not exist, with ``metadata`` on top of its own.

    Raises:
        BadInput, BadCheckpoint: as ``TensorReader`` and ``TensorWriter``; nothing is written.
    """
    with TensorReader(source) as reader:
        plan = {key: (reader.info(key).dtype, reader.info(key).shape) for key in reader.header.tensors}
        with TensorWriter(out, plan, {**reader.metadata, **metadata}) as writer:
            for key in reader.header.tensors:
                writer.write_raw(key, reader.raw(key))
