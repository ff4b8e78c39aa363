"""Running a plan: what is reused, what is made again, and what failing and cancelling leave."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipeline_fake import (
    PROMPTS,
    SIDE,
    TRAINING,
    FakeWorker,
    digests,
    every_kind,
    execute,
    given,
    make_plan,
    make_request,
)

from copier.algebra.arithmetic import combine
from copier.codec import with_value
from copier.errors import BadPicture, Cancelled, TrainingFailed
from copier.images.effects import apply_effect
from copier.ops.lora_file import read_lora
from copier.pipeline.files import LORA, LOSSES, load_picture, load_set, picture_paths
from copier.pipeline.runner import run
from copier.pipeline.stages import rank_arguments
from copier.pipeline.store import RECORD, StageStore
from copier.progress import CancelToken, ProgressEvent
from copier.recipe import (
    DifferenceStage,
    Precision,
    RankMethod,
    RankPolicy,
    Recipe,
    ResizeStage,
    TrainStage,
    with_control,
)
from copier.request import Edit, PictureFiles


def names(folder: Path) -> list[str]:
    """What lies in the store in ``folder``, temporary folders included."""
    return sorted(path.name for path in (folder / "stages").iterdir())


def picture(path: Path, value: int, side: int = SIDE) -> PictureFiles:
    """A plain picture of one value."""
    Image.new("RGB", (side, side), (value, 10, 200)).save(path)
    return PictureFiles((path,))


def refuse(call: str) -> None:
    """For ``FakeWorker.fail``: nothing may be asked of the worker."""
    raise AssertionError(f"the worker was asked: {call}")


def test_a_run_makes_every_stage_and_a_second_one_none(tmp_path):
    request, worker, events = make_request(tmp_path), FakeWorker(), []
    first = execute(request, tmp_path / "data", worker, observer=events.append)
    assert not any(stage.reused for stage in first.stages)
    assert [stage.stage.name for stage in first.stages] == [s.name for s in make_plan(request).stages]
    assert {e.stage for e in events if e.message.startswith("runs: ")} == set(first.entries)
    assert all(entry.record.key == first.plan[name].key for name, entry in first.entries.items())
    before = digests(tmp_path / "data")
    second = execute(request, tmp_path / "data", FakeWorker(fail=refuse), observer=events.append)
    assert all(stage.reused and stage.reason.startswith("reused: ") for stage in second.stages)
    assert second.seconds == 0.0 < first.seconds
    assert second.entries == first.entries
    assert digests(tmp_path / "data") == before


def test_the_worker_is_not_even_started_where_nothing_needs_it(finished):
    data, request, done = finished

    def start():
        raise AssertionError("the worker was started")

    store = StageStore(data / "stages")
    again = run(request, done.plan, store, start, start, lambda event: None, CancelToken())
    assert again.entries == done.entries


def test_every_request_says_what_the_recipe_says(tmp_path):
    request, worker = make_request(tmp_path), FakeWorker()
    done = execute(request, tmp_path / "data", worker)
    asked = {f"{call}": one for call, one in zip(worker.calls, worker.requests, strict=True)}
    second = asked["train wide"]
    assert second.training == TRAINING
    assert second.base == ((done.entries["copier"].path(LORA), 1.0),)
    assert second.pictures == tuple(picture_paths(done.entries["b"]))
    assert asked["train control"].base == asked["train copier"].base == ()
    assert asked["train control"].pictures == second.pictures
    assert asked["train copier"].pictures == tuple(picture_paths(done.entries["a"]))
    both = asked["sample second.pictures"].loras
    assert both == ((done.entries["copier"].path(LORA), 1.0), (done.entries["wide"].path(LORA), 1.0))
    weights = [one.loras[0][1] for one in worker.requests if one.stage == "evaluate.lora"]
    assert weights == [-1.0, 1.0]
    assert asked["sample gate.base"].loras == ()
    assert {one.checkpoint for one in worker.requests} == {request.checkpoint}
    drawn = [one for one in worker.requests if hasattr(one, "width")]
    assert {(one.width, one.height, one.steps) for one in drawn} == {(SIDE, SIDE, 2)}
    assert all(one.prompts == PROMPTS for one in drawn if one.stage != "a")


def test_b_is_the_edit_of_a_and_the_sum_and_the_result_are_what_the_algebra_says(finished):
    _, _, done = finished
    with Image.open(picture_paths(done.entries["a"])[0]) as a:
        edited = np.asarray(apply_effect(a, "grayscale", {}), dtype=np.float32) / 255
    np.testing.assert_array_equal(load_set(done.entries["b"])[0], edited)
    loras = {n: read_lora(done.entries[n].path(LORA)).weights for n in ("copier", "wide", "sum", "lora")}
    exact = combine([(loras["wide"], 1.0), (loras["copier"], -0.5)])
    for module, delta in exact.items():
        whole = delta.dense()
        _, values, _ = np.linalg.svd(whole.numpy())
        # The best of that rank leaves exactly the singular values beyond it (Eckart and Young).
        for name, rank in (("sum", 6), ("lora", 3)):
            lost = float((loras[name][module].dense() - whole).norm())
            assert lost == pytest.approx(float(np.linalg.norm(values[rank:])), rel=1e-3)
            assert loras[name][module].rank == rank
    assert done.entries["lora"].record.outcome["residual"] > 0.01


@pytest.mark.parametrize(
    "ranks",
    [
        RankPolicy(RankMethod.EXACT),
        RankPolicy(RankMethod.SV_FRO, rank=8, threshold=0.8),
        RankPolicy(RankMethod.SV_CUMULATIVE, rank=8, threshold=0.8),
        RankPolicy(RankMethod.SV_RATIO, rank=8, threshold=3.0),
        RankPolicy(RankMethod.SV_FRO, rank=2, threshold=1.0),
    ],
    ids=["exact", "fro", "cumulative", "ratio", "capped"],
)
def test_a_difference_then_a_resize_is_the_difference_by_the_same_policy(tmp_path, ranks):
    stages = (
        TrainStage("copier", "a", training=TRAINING),
        TrainStage("other", "b", training=TRAINING),
        DifferenceStage("exact", "other", "copier", ranks=RankPolicy(RankMethod.EXACT)),
        ResizeStage("resized", "exact", ranks),
        DifferenceStage("direct", "other", "copier", ranks=ranks),
    )
    request = make_request(tmp_path, recipe=Recipe("r", "R", stages, "direct"))
    done = execute(request, tmp_path / "data", FakeWorker())
    exact, resized, direct = (
        read_lora(done.entries[name].path(LORA)).weights for name in ("exact", "resized", "direct")
    )
    for module, delta in direct.items():
        assert abs(delta.dense() - resized[module].dense()).max() < 1e-4
        if ranks.method is RankMethod.EXACT:
            assert abs(delta.dense() - exact[module].dense()).max() < 1e-4
        else:
            assert delta.rank < exact[module].rank == 8
    assert sorted(done.entries["direct"].record.files) == [LORA]


def test_rank_policies_become_the_arguments_of_a_resize():
    assert rank_arguments(RankPolicy(rank=4, conv_rank=2)) == {"rank": 4, "conv_rank": 2}
    assert rank_arguments(RankPolicy(RankMethod.SV_RATIO, rank=9, threshold=2.0)) == {
        "sv_ratio": 2.0,
        "max_rank": 9,
    }


DAMAGE = {
    "corrupt": lambda entry: (entry.folder / sorted(entry.record.files)[0]).write_bytes(b"x"),
    "missing": lambda entry: (entry.folder / sorted(entry.record.files)[0]).unlink(),
    "truncated record": lambda entry: (entry.folder / RECORD).write_text('{"key": "'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("stage", ["copier", "gate", "sum"])
def test_a_damaged_stage_alone_is_made_again_to_the_same_outcome(tmp_path, damage, stage):
    request = make_request(tmp_path)
    first = execute(request, tmp_path / "data", FakeWorker())
    damage(first.entries[stage])
    second = execute(request, tmp_path / "data", FakeWorker())
    assert [one.stage.name for one in second.stages if not one.reused] == [stage]
    assert second.entries[stage].record.files == first.entries[stage].record.files
    assert len(names(tmp_path / "data")) == len({s.key for s in first.plan.stages})


def test_a_changed_number_runs_its_stage_and_what_is_downstream_and_keeps_the_rest(tmp_path):
    request = make_request(tmp_path)
    execute(request, tmp_path / "data", FakeWorker())
    worker = FakeWorker()
    changed = replace(request, recipe=with_value(request.recipe, "lora.ranks.rank=2"))
    done = execute(changed, tmp_path / "data", worker)
    assert [s.stage.name for s in done.stages if not s.reused] == ["lora", "evaluate.lora", "evaluate"]
    assert {call.split()[0] for call in worker.calls} == {"sample", "reconstruct"}


def test_a_second_edit_trains_no_copier(tmp_path):
    request = make_request(tmp_path)
    execute(request, tmp_path / "data", FakeWorker())
    worker = FakeWorker()
    execute(given(request, b=Edit("outline")), tmp_path / "data", worker)
    trained = [call for call in worker.calls if call.startswith("train")]
    assert trained == ["train wide", "train control"]


def test_two_stages_with_one_key_are_made_once(tmp_path):
    stages = (
        TrainStage("copier", "a", training=TRAINING),
        TrainStage("other", "b", training=TRAINING),
        DifferenceStage("lora", "other", "copier"),
    )
    evaluation = every_kind().stage("evaluate")
    recipe = with_control(Recipe("r", "R", (*stages, replace(evaluation, control="")), "lora"))
    worker = FakeWorker()
    done = execute(make_request(tmp_path, recipe=recipe), tmp_path / "data", worker)
    assert [call for call in worker.calls if call.startswith("train")] == ["train copier", "train other"]
    assert done.entries["control"].folder == done.entries["other"].folder
    reason = next(one.reason for one in done.stages if one.stage.name == "control")
    assert reason == "reused: the same as 'other'"


@pytest.mark.parametrize("call", ["sample a", "train wide", "sample second.pictures", "reconstruct gate"])
def test_a_failing_stage_leaves_no_folder_and_keeps_the_earlier_ones(tmp_path, call):
    def fail(current):
        if current == call:
            raise TrainingFailed("out of memory")

    request = make_request(tmp_path)
    with pytest.raises(TrainingFailed, match="out of memory"):
        execute(request, tmp_path / "data", FakeWorker(fail=fail))
    order = [stage.name for stage in make_plan(request).stages]
    failed = call.split()[1]
    made = {StageStore(tmp_path / "data/stages").find(name).record.name for name in names(tmp_path / "data")}
    assert made == set(order[: order.index(failed)])
    again = execute(request, tmp_path / "data", FakeWorker())
    assert {one.stage.name for one in again.stages if one.reused} == made


def test_cancelling_stops_within_a_stage_and_between_two(tmp_path):
    request = make_request(tmp_path)
    for stage, step in (("copier", 2), ("wide", 4)):
        token = CancelToken()

        def observe(event: ProgressEvent, token: CancelToken = token, at: tuple = (stage, step)) -> None:
            if (event.stage, event.step) == at:
                token.cancel()

        with pytest.raises(Cancelled):
            execute(request, tmp_path / "data", FakeWorker(), observer=observe, cancel=token)
    made = {entry.record.name for entry in StageStore(tmp_path / "data/stages").entries()}
    # The fake looks at the token before each of its four steps: the last one still ends the stage.
    assert made == {"a", "b", "copier", "gate.pictures", "gate.base", "gate", "wide"}
    assert not [name for name in names(tmp_path / "data") if name.startswith(".")]


def test_a_token_that_is_set_beforehand_makes_nothing(tmp_path):
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        execute(make_request(tmp_path), tmp_path / "data", FakeWorker(fail=refuse), cancel=token)
    assert not (tmp_path / "data" / "stages").exists()


def test_an_observer_that_fails_does_not_end_a_run(tmp_path):
    def observe(event):
        raise RuntimeError("the window is closed")

    assert execute(make_request(tmp_path), tmp_path / "data", FakeWorker(), observer=observe).stages


def test_two_runs_at_once_share_one_store_and_get_the_same(tmp_path):
    request = make_request(tmp_path)
    barrier = threading.Barrier(2, timeout=60)
    met = set()

    def together(call):
        if call in ("train copier", "train wide") and (call, threading.get_ident()) not in met:
            met.add((call, threading.get_ident()))
            barrier.wait()

    found = {}

    def go(number):
        found[number] = execute(request, tmp_path / "data", FakeWorker(fail=together))

    threads = [threading.Thread(target=go, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    # Both were training at the same time, and one of the two results was kept.
    assert len(met) == 4
    assert found[0].entries.keys() == found[1].entries.keys()
    for name, entry in found[0].entries.items():
        assert entry.folder == found[1].entries[name].folder
    assert len(names(tmp_path / "data")) == len({stage.key for stage in found[0].plan.stages})


def test_pictures_that_are_brought_are_used_as_they_are(tmp_path):
    a, b = picture(tmp_path / "first.png", 30), picture(tmp_path / "second.png", 90)
    worker = FakeWorker()
    done = execute(make_request(tmp_path, a=a, b=b), tmp_path / "data", worker)
    assert "sample a" not in worker.calls
    np.testing.assert_array_equal(load_set(done.entries["b"])[0], load_picture(b.paths[0]))
    record = done.entries["evaluate"].record.outcome["lora"][0]
    assert set(record) == {"weight", "magnitude", "consistency"}
    # Without a known edit there is nothing to reconstruct for a ceiling.
    assert "reconstruct evaluate" not in worker.calls


@pytest.mark.parametrize(
    ("values", "sides", "message"),
    [((30, 30), (SIDE, SIDE), "identical"), ((30, 90), (SIDE, 2 * SIDE), "one size")],
)
def test_pictures_that_make_no_pair_are_refused_before_any_training(tmp_path, values, sides, message):
    a = picture(tmp_path / "first.png", values[0], sides[0])
    b = picture(tmp_path / "second.png", values[1], sides[1])
    worker = FakeWorker()
    with pytest.raises(BadPicture, match=message):
        execute(make_request(tmp_path, a=a, b=b), tmp_path / "data", worker)
    assert worker.calls == []


def test_an_edit_that_changes_nothing_is_refused(tmp_path):
    with pytest.raises(BadPicture, match="'brightness' changes nothing"):
        execute(
            make_request(tmp_path, b=Edit("brightness", {"amount": 0.0})), tmp_path / "data", FakeWorker()
        )


def test_captions_from_files_reach_the_trainer(tmp_path):
    a, b = picture(tmp_path / "first.png", 30), picture(tmp_path / "second.png", 90)
    (tmp_path / "first.txt").write_text("a cat, sitting", encoding="utf-8")
    recipe = with_value(every_kind(), 'training.captions={"policy": "files"}')
    worker, events = FakeWorker(), []
    execute(
        make_request(tmp_path, a=a, b=b, recipe=recipe), tmp_path / "data", worker, observer=events.append
    )
    empty = f"trains with an empty caption: there is no text in a caption file {tmp_path / 'second.txt'}"
    assert [one.stage for one in events if one.message == empty] == ["wide", "control"]
    captions = {one.stage: one.captions for one in worker.requests if hasattr(one, "captions")}
    assert captions == {"copier": ("a cat, sitting",), "wide": ("",), "control": ("",)}


def test_losses_and_figures_are_kept_with_the_stage(finished):
    _, _, done = finished
    assert done.entries["copier"].path(LOSSES).read_text() == "[1.0, 0.5, 0.3333333333333333, 0.25]"
    outcome = done.entries["gate"].record.outcome
    assert outcome["count"] == 3 == len(outcome["distances"])
    assert outcome["median"] == sorted(outcome["distances"])[1]
    figures = done.entries["evaluate"].record.outcome
    assert [one["weight"] for one in figures["lora"]] == [-1.0, 1.0]
    assert figures["lora"][0]["ceiling"] is None
    assert 0 < figures["lora"][1]["ceiling"] <= 1
    assert figures["lora"] != figures["control"]


def test_the_checkpoint_is_drawn_in_the_precision_in_which_it_is_trained_but_the_original_in_fp32(tmp_path):
    recipe = with_value(every_kind(), "training.precision=bf16")
    worker = FakeWorker()
    execute(make_request(tmp_path, recipe=recipe), tmp_path / "data", worker)
    found = {one.stage: one.precision for one in worker.requests if hasattr(one, "precision")}
    assert found.pop("a") is Precision.FP32
    assert set(found.values()) == {Precision.BF16}
    assert {"gate", "gate.pictures", "second", "evaluate", "evaluate.base", "evaluate.lora"} <= set(found)
