"""Pictures that a host drew: PNG files in its output folder, with what they were drawn from as text."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, PngImagePlugin

from copier.app.own_recipes import INFOTEXT_KEY
from copier.app.pictures import picture_stem
from copier.app.ports import GeneratedPicture, GenerateRequest
from copier.pipeline.results import publish

FOLDER = "drawn"
"""Of the output folder."""


@contextlib.contextmanager
def as_png(image: Image.Image, text: str, name: str) -> Iterator[Path]:
    """The picture as a file of that name while the block runs, with ``text`` as hosts write it, if any."""
    info = PngImagePlugin.PngInfo()
    if text:
        info.add_itxt(INFOTEXT_KEY, text)
    with tempfile.TemporaryDirectory(prefix="copier-") as scratch:
        file = Path(scratch) / name
        image.save(file, format="PNG", pnginfo=info)
        yield file


def keep_drawn(
    image: Image.Image, seed: int, text: str, request: GenerateRequest, output: Path
) -> GeneratedPicture:
    """Write the picture into the folder ``drawn`` of ``output``, never over another file.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{picture_stem(request.prompt, seed, request.loras)}.png"
    with as_png(image, text, name) as file:
        return GeneratedPicture(publish(file, folder / name), seed, text)
