"""Pictures inside a page: as data URIs."""

from __future__ import annotations

import base64
import io

from copier.images.sheet import AnyPicture, as_image, fitted


def data_uri(picture: AnyPicture, size: int, *, lossless: bool = False) -> str:
    """``picture`` as a data URI, scaled down so that its longer side has at most ``size`` pixels.

    ``lossless`` is PNG; otherwise JPEG of quality 90 with whole chroma, a fifth of that.
    """
    image = as_image(picture)
    if max(image.size) > size:
        image = fitted(image, size)
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, format="PNG", optimize=True)
    else:
        # Without "optimize": with it Pillow fails on noise, which takes more than a byte for a pixel.
        image.save(buffer, format="JPEG", quality=90, subsampling=0)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
