"""Digests of an operation's inputs, computed while something else is done with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from copier.ops.report import Digest, InputFile


@contextmanager
def described_inputs(
    loras: Sequence[tuple[str | os.PathLike[str], float]], digest: Digest
) -> Iterator[Callable[[], tuple[InputFile, ...]]]:
    """Hash the files of ``loras`` in a thread; what is yielded waits for it, and names them.

    ``hashlib`` releases the GIL, so on a second core this takes no time. Errors of ``digest`` come
    out of the function that is yielded; where something else fails first, they are dropped.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        hashes = [thread.submit(digest, path) for path, _ in loras]

        def described() -> tuple[InputFile, ...]:
            return tuple(
                InputFile(str(path), found.result(), ratio)
                for (path, ratio), found in zip(loras, hashes, strict=True)
            )

        try:
            yield described
        finally:
            for found in hashes:
                found.cancel()
