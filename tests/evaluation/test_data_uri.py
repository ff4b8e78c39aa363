"""Pictures inside a page come out as they went in."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from copier.evaluation.data_uri import data_uri


@pytest.mark.parametrize("lossless", [True, False])
def test_noise_which_hardly_compresses_becomes_a_uri_too(lossless: bool) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (640, 640, 3), dtype=np.uint8)
    uri = data_uri(Image.fromarray(noise), 512, lossless=lossless)
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as shown:
        assert shown.size == (512, 512)
