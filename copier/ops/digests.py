"""Digests of an operation's inputs, computed while something else is done with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from copier.digest import wait_for
from copier.ops.report import Digest, InputFile
from copier.progress import CancelToken


@contextmanager
def described_inputs(
    files: Sequence[tuple[str | os.PathLike[str], float]],
    digest: Digest,
    cancel: CancelToken | None = None,
) -> Iterator[Callable[[], tuple[InputFile, ...]]]:
    """Hash ``files``, each with its ratio, in threads; what is yielded waits for that, and names them.

    ``hashlib`` releases the GIL, so on a second core this takes no time. Errors of ``digest``, and
    ``Cancelled``, come out of the function that is yielded; where the block ends, hashing ends too.
    """
    given_up = CancelToken()
    with ThreadPoolExecutor(max(1, len(files)), thread_name_prefix="digest") as threads:
        hashes = [threads.submit(digest, path, cancel=given_up) for path, _ in files]

        def described() -> tuple[InputFile, ...]:
            wait_for(hashes, cancel)
            return tuple(
                InputFile(str(path), found.result(), ratio)
                for (path, ratio), found in zip(files, hashes, strict=True)
            )

        try:
            yield described
        finally:
            given_up.cancel()
