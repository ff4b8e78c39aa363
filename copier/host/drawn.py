"""Pictures that a host drew: PNG files in its output folder, with what they were drawn from as text."""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image, PngImagePlugin

from copier.app.pictures import picture_stem
from copier.app.ports import GeneratedPicture, GenerateRequest
from copier.pipeline.results import publish

FOLDER = "drawn"
"""Of the output folder."""
INFOTEXT_KEY = "parameters"
"""Under which A1111 and Forge keep it in a PNG file."""


def keep_drawn(
    image: Image.Image, seed: int, text: str, request: GenerateRequest, output: Path
) -> GeneratedPicture:
    """Write the picture into the folder ``drawn`` of ``output``, never over another file.

    Raises:
        OSError: the folder cannot be written.
    """
    info = PngImagePlugin.PngInfo()
    info.add_itxt(INFOTEXT_KEY, text)
    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    stem = picture_stem(request.prompt, seed, request.loras)
    with tempfile.TemporaryDirectory(prefix="copier-") as scratch:
        file = Path(scratch) / "picture.png"
        image.save(file, format="PNG", pnginfo=info)
        return GeneratedPicture(publish(file, folder / f"{stem}.png"), seed, text)
