"""What a host is asked: paths that strangers may name, and requests for pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from copier.app.ports import MOST_DRAWN, Folders, GenerateRequest, Security, allowed_beneath
from copier.errors import BadInput
from copier.fields import LARGEST_SEED

OPEN = Security()
LISTENING = Security(listening=True)
RESTRICTED = (LISTENING, Security(shared=True), Security(shared=True, listening=True))


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = [tmp_path / name for name in ("loras", "output", "data", "models", "vae")]
    for folder in made:
        folder.mkdir()
    (tmp_path / "secret.png").touch()
    return Folders(*made[:3], (made[3],), (made[4],))


def test_who_may_sit_at_the_page_is_told_from_the_hosts_flags() -> None:
    assert [one.restricted for one in RESTRICTED] == [True] * 3
    assert not OPEN.restricted
    assert not Security(shared=True, listening=True, insecure_access=True).restricted


@pytest.mark.parametrize("security", RESTRICTED)
def test_strangers_reach_the_hosts_folders_and_nothing_else(
    folders: Folders, tmp_path: Path, security: Security
) -> None:
    for folder in folders.every:
        inside = folder / "deeper" / "ü.png"
        assert allowed_beneath(inside, folders, security) == inside.resolve()
    outside = ("secret.png", "loras/../secret.png", "loras/x/../../secret.png", "loras2/x.png", "loras-x")
    for name in outside:
        with pytest.raises(BadInput, match=r"outside the folders.*--enable-insecure-extension-access"):
            allowed_beneath(tmp_path / name, folders, security)
    with pytest.raises(BadInput, match="outside"):
        allowed_beneath(Path("/etc/passwd"), folders, security)


def test_a_link_counts_as_what_it_leads_to(folders: Folders, tmp_path: Path) -> None:
    (folders.loras / "out").symlink_to(tmp_path)
    (folders.loras / "in").symlink_to(folders.data)
    with pytest.raises(BadInput, match="outside"):
        allowed_beneath(folders.loras / "out" / "secret.png", folders, LISTENING)
    assert allowed_beneath(folders.loras / "in" / "x", folders, LISTENING) == folders.data.resolve() / "x"


def test_a_folder_that_is_a_link_is_the_hosts_all_the_same(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with_link = Folders(link, folders.output, folders.data)
    assert allowed_beneath(link / "x.safetensors", with_link, LISTENING).name == "x.safetensors"


def test_who_owns_the_machine_may_name_any_path(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    allowed = Security(listening=True, insecure_access=True)
    for security in (OPEN, allowed):
        assert allowed_beneath(Path("loras/../secret.png"), folders, security) == tmp_path / "secret.png"
    assert allowed_beneath(Path("~/x"), folders, OPEN) == Path(os.path.expanduser("~/x"))


def test_a_zero_byte_is_no_path(folders: Folders) -> None:
    for security in (OPEN, LISTENING):
        with pytest.raises(BadInput, match="zero byte"):
            allowed_beneath(folders.loras / "a\0b", folders, security)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 100}, "width is 100 px"),
        ({"height": -64}, "height is -64 px"),
        ({"count": 0}, f"give 1 to {MOST_DRAWN}"),
        ({"count": MOST_DRAWN + 1}, f"give 1 to {MOST_DRAWN}"),
        ({"steps": 0}, "sampling steps is 0"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": LARGEST_SEED, "count": 2}, "last picture's seed"),
        ({"prompt": "\ud800"}, "the prompt has a character"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        GenerateRequest(**{"prompt": "x", **values})
