"""Stands in for torchvision where the installed one cannot be imported, or there is none.

A torchvision that was built for another torch fails with "operator torchvision::nms does not exist".
Training a LoRA reaches only ``transforms.Compose``, ``ToTensor`` and ``Normalize``. transformers decides by
the metadata of an installed torchvision what it imports on the way, so the stand-in has some beside it, of a
version before ``transforms.v2``; the modules that are imported then, and not used, are empty.
"""

from . import transforms

__all__ = ["transforms"]
__version__ = "0.0.0"
