"""What the host loads: checks that the package it imports is ours, then says what works today."""

from pathlib import Path

import copier

ROOT = Path(__file__).resolve().parent.parent
FOUND = Path(copier.__file__ or "an unknown place").resolve().parent

if FOUND == ROOT / "copier":
    print("Copier: the tab is not there yet; today it works from the command line: python -m copier --help")
else:
    # PyPI has an unrelated package of this name: templates for projects.
    print(
        f"Copier: the Python package 'copier' that was imported lies in {FOUND}, not in {ROOT / 'copier'}; "
        "another package of that name is installed in this environment: remove it (pip uninstall copier)"
    )
