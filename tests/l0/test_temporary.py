"""Files that are replaced in one step, also where two processes write the same one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from copier.temporary import create_temporary, move_into_place, remove_leftovers, replace_file

WRITER = """
import sys
from pathlib import Path
from copier.temporary import replace_file
for number in range(300):
    replace_file(Path(sys.argv[1]), f"{sys.argv[2]} {number}".encode())
"""


def test_two_writers_of_one_file_do_not_take_each_others_for_leftovers(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(target), name], stderr=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    errors = [writer.communicate()[1] for writer in writers]
    assert errors == ["", ""]
    assert target.read_text() in ("one 299", "two 299")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is open cannot be renamed there")
def test_the_temporary_file_is_locked_until_it_has_its_name(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    file, place = create_temporary(target)
    with file:
        remove_leftovers(target)
        assert place.exists()
        move_into_place(file, place, target)
    assert target.exists() and not place.exists()


def test_a_leftover_is_swept_when_its_target_is_written_again(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    leftover = tmp_path / ".a.txt.0123abcd.tmp"
    leftover.write_text("half")
    replace_file(target, b"whole")
    assert target.read_bytes() == b"whole"
    assert not leftover.exists()
