"""The estimate of the room that a run's LoRAs take."""

from __future__ import annotations

from copier.app.room import largest_rank, lora_room, picture_room
from copier.checkpoint.family import Family
from copier.checkpoint.header import Header, TensorInfo
from copier.checkpoint.shapes import REAL, checkpoint_shapes
from copier.codec import load_recipe, with_value


def real_checkpoint() -> Header:
    shapes = checkpoint_shapes(REAL[Family.SD1])
    tensors = {key: TensorInfo("F16", shape, 0, 0) for key, shape in shapes.items()}
    return Header(tensors=tensors, metadata={}, data_start=0, file_size=0)


def test_a_lora_of_rank_64_for_sd15_takes_109_mb_in_float32() -> None:
    recipe = load_recipe("copier-quick")
    for value in ("training.rank=64", "training.conv_rank=0", "training.text_encoder=false"):
        recipe = with_value(recipe, value)
    stored = lora_room(recipe, real_checkpoint()) * 4 / 6 / len(tuple(recipe.trainings()))
    assert round(stored / 1e6) == 109


def test_an_exact_difference_has_both_ranks() -> None:
    recipe = load_recipe("difference-exact")
    trained = sum(one.training.rank for one in recipe.trainings())
    ranks = lora_room(recipe, real_checkpoint())
    alone = lora_room(with_value(load_recipe("difference-svd"), "difference.ranks.rank=1"), real_checkpoint())
    assert ranks * (trained + 1) == alone * 2 * trained


def test_a_thousand_pictures_that_are_measured_by_need_gigabytes() -> None:
    recipe = load_recipe("copier-quick-pocket")
    assert picture_room(recipe, {"a": [(128, 128)], "b": [(128, 128)]}) < 1 << 20
    assert picture_room(recipe, {"a": [(512, 512)] * 1000}) == 1000 * 512 * 512 * (6 + 15)
    assert picture_room(recipe, {"a": [(512, 512), (768, 512)]}) == 1280 * 512 * (6 + 15)


def test_the_rank_of_a_lora_file_is_that_of_its_down_factors_in_any_layout() -> None:
    for down, up in (("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")):
        shapes = {f"x.{down}": (6, 20), f"x.{up}": (30, 6), f"y.{down}": (4, 20), f"y.{up}": (30, 4)}
        tensors = {key: TensorInfo("F32", shape, 0, 0) for key, shape in shapes.items()}
        assert largest_rank(Header(tensors=tensors, metadata={}, data_start=0, file_size=0)) == 6
