"""Digests of an operation's inputs, computed while something else is done with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from copier.ops.report import Digest, InputFile


@contextmanager
def described_inputs(
    files: Sequence[tuple[str | os.PathLike[str], float]], digest: Digest
) -> Iterator[Callable[[], tuple[InputFile, ...]]]:
    """Hash ``files``, each with its ratio, in threads; what is yielded waits for that, and names them.

    ``hashlib`` releases the GIL, so on a second core this takes no time. Errors of ``digest`` come
    out of the function that is yielded; where something else fails first, nothing waits for them.
    """
    threads = ThreadPoolExecutor(len(files), thread_name_prefix="digest")
    hashes = [threads.submit(digest, path) for path, _ in files]

    def described() -> tuple[InputFile, ...]:
        return tuple(
            InputFile(str(path), found.result(), ratio)
            for (path, ratio), found in zip(files, hashes, strict=True)
        )

    try:
        yield described
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
