"""Stands in for torchvision where the installed one cannot be imported, or there is none.

Training a LoRA reaches only ``transforms.Compose``, ``ToTensor`` and ``Normalize``; transformers, where it
finds the metadata of an installed torchvision, reads ``InterpolationMode`` as well. A torchvision that was
built for another torch fails with "operator torchvision::nms does not exist".
"""

from . import transforms

__all__ = ["transforms"]
__version__ = "0.0.0"
