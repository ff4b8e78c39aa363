"""Puts this folder on the path, for ``narrow_models``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
