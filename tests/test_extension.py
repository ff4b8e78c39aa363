"""What a host runs when it loads the extension."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def loaded(*folders: Path) -> str:
    """What the script of the extension prints where packages are found in ``folders``, in that order."""
    code = "import runpy, sys; sys.path[:0] = sys.argv[2:]; runpy.run_path(sys.argv[1])"
    script = ROOT / "scripts" / "copier_webui.py"
    done = subprocess.run(
        [sys.executable, "-c", code, str(script), *map(str, folders)],
        capture_output=True, text=True, check=True, cwd=folders[0],
    )  # fmt: skip
    return done.stdout


def test_the_host_is_told_what_works_today() -> None:
    assert "python -m copier" in loaded(ROOT)


def test_another_package_of_the_name_is_named_with_the_remedy(tmp_path: Path) -> None:
    other = tmp_path / "copier"
    other.mkdir()
    (other / "__init__.py").touch()
    said = loaded(tmp_path, ROOT)
    assert str(other) in said and "pip uninstall copier" in said
