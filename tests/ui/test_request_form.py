"""From the form to a run: what is refused, and where that is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from copier.app.caption_sets import caption_in
from copier.app.edits import edits_json
from copier.app.pair_preview import fitted_picture, fitted_size, keep_picture, look_at
from copier.app.ports import Security
from copier.codec import builtin_recipes
from copier.errors import BadInput, BadPicture
from copier.recipe import PictureSet
from copier.request import Edit, PictureFiles
from copier.ui.picture_sets import FIRST, SECOND, Pictures, caption_key
from copier.ui.recipe_form import with_caption_files
from copier.ui.request_form import OWN_EDIT, lora_file, lora_label, wanted

RECIPE = builtin_recipes()["copier-quick-pocket"]
PLAIN: dict[str, Any] = {
    "original.fit": True,
    "edited.edit": "Outline",
    "edited.outline.width": 5,
    "edited.outline.threshold": 0.1,
    "edited.outline.strength": 1,
    "run.threads": 0,
    "run.seeds": 1,
    "run.sample_every": 0,
    "run.clip_skip": 1,
}


def asked(host: Any, settings: Any, pictures: Pictures, **more: Any) -> Any:
    answers = {**PLAIN, **{name.replace("__", "."): value for name, value in more.items()}}
    return wanted(answers, RECIPE, pictures, host, settings, edits_json())


def test_a_built_in_edit_and_its_values_become_the_request(host: Any, settings: Any, picture: Path) -> None:
    found = asked(host, settings, Pictures((picture,)), run__title="Lines", run__control=True)
    assert found.problems == ()
    assert found.request.pictures["a"] == PictureFiles((picture,))
    assert found.request.pictures["b"] == Edit("outline", {"width": 5, "threshold": 0.1, "strength": 1})
    assert (found.control, found.title, found.request.threads) == (True, "Lines", None)
    assert found.request.out.parent == host.folders().output and "Lines" in found.request.out.name


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("edited.edit", None),
        ("edited.edit", OWN_EDIT),
        ("original.checkpoint", "gone"),
        ("run.seeds", 0),
        ("run.seeds", 1.5),
        ("run.threads", None),
        ("run.sample_every", -1),
        ("run.extra", "'open"),
        ("run.captions", "/nowhere/at/all"),
    ],
)
def test_a_wrong_answer_is_refused_beside_its_field(
    host: Any, settings: Any, picture: Path, path: str, value: Any
) -> None:
    found = asked(host, settings, Pictures((picture,)), **{path.replace(".", "__"): value})
    assert found.request is None
    beside = {"edited.files"} if value == OWN_EDIT else {path}
    assert {one.path for one in found.problems} == beside


def test_a_value_of_an_edit_that_is_out_of_bounds_is_refused(host: Any, settings: Any, picture: Path) -> None:
    found = asked(host, settings, Pictures((picture,)), edited__outline__width=99)
    assert found.request is None and "31" in found.problems[0].message


def test_without_an_original_that_is_what_is_said(host: Any, settings: Any) -> None:
    found = asked(host, settings, Pictures())
    assert [one.path for one in found.problems] == ["original.files"]


def test_several_problems_are_all_said(host: Any, settings: Any) -> None:
    found = asked(host, settings, Pictures(), run__seeds=0, run__threads=-1)
    assert {one.path for one in found.problems} == {"original.files", "run.seeds", "run.threads"}


def test_from_outside_no_arguments_and_no_foreign_paths(
    host: Any, settings: Any, picture: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    more = {"run__extra": "--network_module evil", "run__captions": str(outside)}
    host.guarded = Security(listening=True)
    found = asked(host, settings, Pictures((picture,)), **more)
    assert {one.path for one in found.problems} == {"run.extra", "run.captions"}
    host.guarded = Security(listening=True, insecure_access=True)
    assert asked(host, settings, Pictures((picture,)), **more).request.scripts.extra == (
        "--network_module",
        "evil",
    )


def test_edited_pictures_of_a_set_are_found_by_name(host: Any, settings: Any, tmp_path: Path) -> None:
    files = {}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("one", "two"):
            files[folder, name] = tmp_path / folder / f"{name}.png"
            Image.new("RGB", (128, 128), "red" if folder == "a" else "blue").save(files[folder, name])
    originals = (files["a", "one"], files["a", "two"])
    crossed = Pictures(originals, (files["b", "two"], files["b", "one"]))
    found = asked(host, settings, crossed, edited__edit=OWN_EDIT)
    assert found.request.pictures["b"] == PictureFiles((files["b", "one"], files["b", "two"]))
    found = asked(host, settings, Pictures(originals, crossed.edited[:1]), edited__edit=OWN_EDIT)
    assert [one.path for one in found.problems] == ["edited.files"] and "one" in found.problems[0].message


def test_pictures_are_made_to_fit_and_a_pair_stays_a_pair(settings: Any, tmp_path: Path) -> None:
    a, b = tmp_path / "photo.jpg", tmp_path / "photo-edited.png"
    image = Image.linear_gradient("L").resize((1000, 667)).convert("RGB")
    image.save(a)
    image.point(lambda value: value // 2).save(b)
    sizes = {Image.open(fitted_picture(keep_picture(path, settings), 512, settings)).size for path in (a, b)}
    assert sizes == {(512, 320)}


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (5000, 3), (3, 5000), (700, 701)])
def test_a_fitted_size_is_one_that_can_be_trained_on(size: tuple[int, int]) -> None:
    width, height = fitted_size(size, 512)
    assert width % 64 == 0 == height % 64 and max(width, height) == 512 and min(width, height) >= 64


def test_a_picture_that_fits_is_not_touched(settings: Any, picture: Path) -> None:
    kept = keep_picture(picture, settings)
    assert kept.read_bytes() == picture.read_bytes() and kept == keep_picture(picture, settings)
    assert fitted_picture(kept, 128, settings) == kept


def test_what_is_no_picture_is_not_kept(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "fake.png").write_text("no picture")
    with pytest.raises(BadPicture, match="fake"):
        keep_picture(tmp_path / "fake.png", settings)
    assert not settings.pictures.exists()


def test_a_pair_of_two_sizes_says_so(picture: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "small.png")
    assert "64 x 64" in look_at(picture, tmp_path / "small.png").problem
    assert look_at(picture, Edit("grayscale")).changed == pytest.approx(1.0)


def test_loras_of_one_name_in_two_folders_are_told_apart(host: Any) -> None:
    folder = host.folders().loras
    for name in ("one.safetensors", "sub/one.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    labels = [lora_label(path, host) for path in host.loras()]
    assert sorted(labels) == ["one.safetensors", "sub/one.safetensors"]
    assert lora_file("sub/one.safetensors", host) == folder / "sub/one.safetensors"
    with pytest.raises(BadInput, match="gone"):
        lora_file("gone", host)


def test_a_recipe_of_two_sets_takes_the_second_from_where_edited_pictures_go(
    host: Any, settings: Any, tmp_path: Path
) -> None:
    files = [tmp_path / f"{name}.png" for name in ("one", "two", "hero")]
    for path in files:
        Image.new("RGB", (128, 128), (200, 10, 10)).save(path)
    recipe = builtin_recipes()["character-pocket"]
    given = Pictures(tuple(files[:2]), tuple(files[2:]))
    found = wanted(PLAIN, recipe, given, host, settings, edits_json())
    assert found.problems == ()
    assert {name: one.paths for name, one in found.request.pictures.items()} == {
        "base": given.originals,
        "character": given.edited,
    }
    (problem,) = wanted(PLAIN, recipe, Pictures(given.originals), host, settings, edits_json()).problems
    assert problem.path == "edited.files" and "'character'" in problem.message


def test_captions_of_the_table_reach_both_sets_though_their_pictures_share_a_name(
    host: Any, settings: Any, tmp_path: Path
) -> None:
    same = []
    for folder in ("base", "hero"):
        (tmp_path / folder).mkdir()
        same.append(tmp_path / folder / "1.png")
        Image.new("RGB", (128, 128), "red").save(same[-1])
    first, second = same
    texts = {
        caption_key(FIRST, first): "red hair, white background",
        caption_key(SECOND, second): "pink hair, white background",
    }
    recipe = builtin_recipes()["character-pocket"]
    found = wanted(PLAIN, recipe, Pictures((first,), (second,), texts), host, settings, edits_json())
    folder = found.request.captions
    read = {str(one.relative_to(folder)): one.read_text(encoding="utf-8") for one in folder.rglob("*.txt")}
    assert read == {
        "base/1.txt": "red hair, white background\n",
        "character/1.txt": "pink hair, white background\n",
    }
    again = wanted(PLAIN, recipe, Pictures((first,), (second,), texts), host, settings, edits_json())
    assert again.request.captions == folder
    other = Pictures((first,), (second,), {**texts, caption_key(SECOND, second): "arms at sides"})
    changed = wanted(PLAIN, recipe, other, host, settings, edits_json()).request.captions
    assert changed != folder and read["character/1.txt"] == (folder / "character/1.txt").read_text()
    both = {**PLAIN, "run.captions": str(tmp_path)}
    (problem,) = wanted(both, recipe, other, host, settings, edits_json()).problems
    assert problem.path == "run.captions" and "table" in problem.message


def test_captions_that_no_training_reads_are_no_part_of_a_run(
    host: Any, settings: Any, picture: Path
) -> None:
    texts = {caption_key(FIRST, picture): "a star"}
    found = asked(host, settings, Pictures((picture,), (), texts))
    assert found.request.captions is None and not settings.captions.exists()


def test_an_edited_picture_of_ones_own_has_its_originals_caption(
    host: Any, settings: Any, picture: Path
) -> None:
    edited = picture.with_name("other.png")
    Image.new("RGB", (128, 128), "blue").save(edited)
    pictures = Pictures((picture,), (edited,), {caption_key(FIRST, picture): "a star"})
    recipe = with_caption_files(RECIPE)
    answers = {**PLAIN, "edited.edit": OWN_EDIT}
    request = wanted(answers, recipe, pictures, host, settings, edits_json()).request
    assert [caption_in(request.captions, name, stem) for name, stem in (("a", "a"), ("b", "other"))] == [
        "a star"
    ] * 2


def test_two_pictures_of_one_name_cannot_have_two_captions(host: Any, settings: Any, tmp_path: Path) -> None:
    files = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "1.png")
        Image.new("RGB", (128, 128), "red").save(files[-1])
    texts = {caption_key(FIRST, path): path.parent.name for path in files}
    recipe = builtin_recipes()["picture-set-pocket"]
    (problem,) = wanted(
        PLAIN, recipe, Pictures(tuple(files), (), texts), host, settings, edits_json()
    ).problems
    assert problem.path == "captions.table" and "two captions" in problem.message


def test_a_recipe_of_three_sets_is_refused_once(host: Any, settings: Any, picture: Path) -> None:
    recipe = replace(builtin_recipes()["character-pocket"], pictures=(
        *builtin_recipes()["character-pocket"].pictures, PictureSet("more"),
    ))  # fmt: skip
    (problem,) = wanted(
        PLAIN, recipe, Pictures((picture,), (picture,)), host, settings, edits_json()
    ).problems
    assert problem.path == "recipe.pictures" and "the tab fills two" in problem.message


def test_a_recipe_that_measures_nothing_has_no_plain_lora_to_compare(
    host: Any, settings: Any, picture: Path
) -> None:
    recipe = builtin_recipes()["picture-set-pocket"]
    found = wanted({**PLAIN, "run.control": True}, recipe, Pictures((picture,)), host, settings, edits_json())
    assert found.request is not None and not found.control
