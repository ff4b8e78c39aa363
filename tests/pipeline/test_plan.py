"""Keys, what they depend on, and the reasons that a dry run gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from pipeline_fake import (
    TRAINING,
    FakeWorker,
    digests,
    every_kind,
    every_kind_there_is,
    execute,
    given,
    make_plan,
    make_request,
)

from copier.codec import builtin_recipes, with_value
from copier.digest import file_digest
from copier.errors import BadInput
from copier.pipeline.plan import LATER_FIELDS, VERSIONS, original_side, paired, plan
from copier.pipeline.runner import states
from copier.pipeline.store import StageStore
from copier.recipe import (
    BaseLora,
    CaptionPolicy,
    CaptionSpec,
    EvaluateStage,
    LossWeighting,
    Optimiser,
    Precision,
    Recipe,
    Schedule,
    Target,
    Trainer,
    TrainingSpec,
    TrainStage,
    with_control,
)
from copier.request import Edit, Generated, PictureFiles, RunRequest

HERE = Path(__file__).parent

OTHER = {
    "steps": 5,
    "batch_size": 2,
    "learning_rate": 5e-4,
    "rank": 5,
    "alpha": 1.0,
    "conv_rank": 1,
    "conv_alpha": 2.0,
    "text_encoder": True,
    "optimiser": Optimiser.ADAMW_8BIT,
    "optimiser_arguments": ("eps=1e-07",),
    "weight_decay": 0.0,
    "schedule": Schedule.LINEAR,
    "warmup_steps": 1,
    "captions": CaptionSpec(CaptionPolicy.FIXED, ("a cat",)),
    "loss_weighting": LossWeighting.MIN_SNR,
    "min_snr_gamma": 4.0,
    "noise_offset": 0.1,
    "min_timestep": 1,
    "max_timestep": 999,
    "resolution": 64,
    "precision": Precision.FP16,
    "fp8_base": True,
    "gradient_checkpointing": True,
    "masked_loss": True,
    "pair_mask": True,
    "mask_margin": 4,
    "target": Target.PAIR,
    "eta": 2.0,
    "seed": 2,
}
"""Another value for every field of a training."""


def keys(request: RunRequest) -> dict[str, str]:
    """The key of every planned stage by name."""
    return {stage.name: stage.key for stage in make_plan(request).stages}


def changed(before: RunRequest, after: RunRequest) -> set[str]:
    """Names of the stages whose keys differ."""
    known, wanted = keys(before), keys(after)
    assert known.keys() == wanted.keys()
    return {name for name in known if known[name] != wanted[name]}


def downstream(request: RunRequest, *names: str) -> set[str]:
    """The named stages and all that need them, found by walking the needs."""
    found = set(names)
    for stage in make_plan(request).stages:
        if found & set(stage.needs.values()):
            found.add(stage.name)
    return found


def with_training(request: RunRequest, stage: str, **changes: object) -> RunRequest:
    """``request`` with other numbers in one training."""
    stages = tuple(
        replace(one, training=replace(one.training, **changes))
        if one.name == stage and isinstance(one, TrainStage)
        else one
        for one in request.recipe.stages
    )
    return replace(request, recipe=replace(request.recipe, stages=stages))


def test_a_plan_lists_every_stage_after_what_it_needs(tmp_path):
    planned = make_plan(make_request(tmp_path, recipe=every_kind_there_is()))
    seen: set[str] = set()
    for stage in planned.stages:
        assert set(stage.needs.values()) <= seen
        seen.add(stage.name)
    assert len(seen) == len(planned.stages)
    assert {stage.kind for stage in planned.stages} == set(VERSIONS)
    with pytest.raises(KeyError):
        planned["nothing"]


ELSEWHERE = """
import sys, json
from pathlib import Path
from copier.codec import builtin_recipes
from copier.digest import file_digest
from copier.pipeline.plan import plan
from copier.recipe import with_control
from copier.request import Edit, Generated, RunRequest
checkpoint = Path(sys.argv[1])
recipe = with_control(builtin_recipes()["copier-quick-pocket"])
request = RunRequest(recipe, checkpoint, {"a": Generated("x"), "b": Edit("outline")}, checkpoint)
print(json.dumps({stage.name: stage.key for stage in plan(request, file_digest).stages}))
assert "torch" not in sys.modules
"""


def test_equal_requests_have_equal_keys_in_this_process_and_in_another(tmp_path):
    recipe = with_control(builtin_recipes()["copier-quick-pocket"])
    request = make_request(tmp_path, recipe=recipe, a=Generated("x"), b=Edit("outline"))
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(HERE.parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(request.checkpoint)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert json.loads(run.stdout) == keys(request) == keys(replace(request))


def test_there_is_another_value_for_every_field_of_a_training():
    assert set(OTHER) == {field.name for field in fields(TRAINING)}
    assert all(getattr(TRAINING, name) != value for name, value in OTHER.items())


def test_a_field_that_came_later_leaves_the_keys_of_earlier_trainings_as_they_were(tmp_path):
    """The keys are what this program gave before it had ``LATER_FIELDS``."""
    stages = (
        TrainStage("copier", "a"),
        TrainStage("lora", "b", (BaseLora("copier"),), "copier", TrainingSpec(conv_rank=4, seed=7)),
    )
    recipe = Recipe("later", "Later", stages, "lora", trainer=Trainer.SD_SCRIPTS)
    pictures = {"a": Generated("x", seed=5), "b": Edit("outline")}
    request = RunRequest(recipe, tmp_path / "checkpoint", pictures, tmp_path)
    planned = plan(request, lambda path: "0" * 64)
    assert planned["copier"].key == "2ead8b96259e5b562a5f3fe6117c2520ab2afcfe1ee909b0858908e5793727d1"
    assert planned["lora"].key == "74a3e8f3c635dfbe40591bd796561a8385ab174dadac04b91fdf494ff6b4f215"
    assert set(LATER_FIELDS) < set(OTHER)
    captions = replace(stages[0].training.captions, dropout=0.1)
    training = replace(stages[0].training, captions=captions)
    recipe = replace(recipe, stages=(replace(stages[0], training=training), stages[1]))
    assert plan(replace(request, recipe=recipe), lambda path: "0" * 64)["copier"].key != planned["copier"].key


BUILTIN_ONLY = TrainingSpec(target=Target.PAIR).of_builtin_only


@pytest.mark.parametrize("field", sorted(OTHER))
def test_each_number_of_a_training_changes_it_and_what_is_downstream_and_no_other(tmp_path, field):
    # sd-scripts' trainings have nearly every field, and fp8 needs another precision than fp32.
    recipe = every_kind(replace(TRAINING, precision=Precision.BF16))
    trainer = Trainer.BUILTIN if field in BUILTIN_ONLY else Trainer.SD_SCRIPTS
    request = make_request(tmp_path, recipe=replace(recipe, trainer=trainer))
    # The original's side is given, so that the resolution is the training's alone.
    for stage in ("copier", "wide", "control"):
        if stage == "copier" and field in ("pair_mask", "target"):
            continue  # of pairs, and this one is on originals
        other = with_training(request, stage, **{field: OTHER[field]})
        first = [stage]
        if (stage, field) == ("copier", "precision"):
            # The first training's is that of the drawing too.
            first += [one.name for one in make_plan(request).stages if one.kind == "draw"]
        assert changed(request, other) == downstream(request, *first)
    assert downstream(request, "control") == {"control", "evaluate.control", "evaluate"}


@pytest.mark.parametrize(
    ("assignment", "first"),
    [
        ("gate.median_limit=0.9", ["gate", "second"]),
        ('gate.prompts=["a", "b", "c"]', ["gate.pictures", "gate.base", "second.pictures"]),
        ("second.seeds=[99]", ["second.pictures"]),
        ("sum.subtrahend_ratio=-0.25", ["sum"]),
        ("sum.ranks.rank=5", ["sum"]),
        ("lora.ranks.rank=2", ["lora"]),
        ("evaluate.weights=[-1, 1, 1.5]", ["evaluate.lora", "evaluate.control"]),
        ("evaluate.guidance=5", ["evaluate.base", "evaluate.lora", "evaluate.control"]),
        ("evaluate.floor=0.1", ["evaluate"]),
        ("trainer=sd-scripts", ["copier", "wide", "control"]),
    ],
)
def test_each_number_of_another_stage_changes_no_more_than_it_must(tmp_path, assignment, first):
    request = make_request(tmp_path)
    other = replace(request, recipe=with_value(request.recipe, assignment))
    assert changed(request, other) == downstream(request, *first)


@pytest.mark.parametrize(("stage", "first"), [("wide", "wide"), ("second", "second.pictures")])
def test_the_multiplier_of_a_base_lora_counts(tmp_path, stage, first):
    request = make_request(tmp_path)
    stages = tuple(
        replace(one, base=(BaseLora("copier", 0.5),)) if one.name == stage else one
        for one in request.recipe.stages
    )
    other = replace(request, recipe=replace(request.recipe, stages=stages))
    assert changed(request, other) == downstream(request, first)


def test_titles_folders_devices_and_names_change_no_key(tmp_path):
    request = make_request(tmp_path)
    moved = tmp_path / "elsewhere"
    moved.write_bytes(request.checkpoint.read_bytes())
    other = replace(
        request,
        recipe=replace(request.recipe, name="other", title="Other", explanation="Else."),
        checkpoint=moved,
        out=tmp_path / "other",
        title="Another",
        device="cpu",
        threads=3,
    )
    assert changed(request, other) == set()


def test_another_checkpoint_changes_every_key(tmp_path):
    request = make_request(tmp_path)
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other weights")
    assert changed(request, replace(request, checkpoint=other)) == set(keys(request))
    assert make_plan(request).checkpoint == file_digest(request.checkpoint)


WITH_COPIER = sorted(
    name
    for name, recipe in builtin_recipes().items()
    if "copier" in [one.name for one in recipe.stages] and not any(one.one_by_one for one in recipe.pictures)
)


@pytest.mark.parametrize("name", WITH_COPIER)
def test_a_second_edit_reuses_the_copier_its_gate_and_the_bases_pictures(tmp_path, name):
    request = make_request(tmp_path, recipe=with_control(builtin_recipes()[name]))
    moved = changed(request, given(request, b=Edit("outline")))
    kept = set(keys(request)) - moved
    assert {"a", "copier", "gate", "gate.base", "gate.pictures", "evaluate.base"} <= kept
    assert moved == downstream(request, "b")
    assert {"b", "lora", "control", "evaluate"} <= moved


def test_the_parameters_of_an_edit_count_and_its_defaults_are_numbers_like_others(tmp_path):
    request = make_request(tmp_path, b=Edit("outline"))
    assert changed(request, given(request, b=Edit("outline", {"width": 3}))) == set()
    assert "b" in changed(request, given(request, b=Edit("outline", {"width": 5})))
    with pytest.raises(BadInput, match="'outlin'"):
        make_plan(given(request, b=Edit("outlin")))


def test_pictures_count_by_their_content_wherever_they_lie(tmp_path):
    for name, content in (("one.png", b"A"), ("two.png", b"A"), ("three.png", b"B")):
        (tmp_path / name).write_bytes(content)
    one, two, three = (PictureFiles((tmp_path / f"{name}.png",)) for name in ("one", "two", "three"))
    request = make_request(tmp_path, a=one, b=three)
    assert changed(request, given(request, a=two)) == set()
    assert changed(request, given(request, b=one)) == downstream(request, "b")
    assert "copier" in changed(request, given(request, a=three))


def test_caption_files_count_where_captions_come_from_files(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    a, b = (PictureFiles((tmp_path / name,)) for name in ("a.png", "b.png"))
    request = make_request(tmp_path, a=a, b=b)
    files = {"captions": CaptionSpec(CaptionPolicy.FILES)}
    tagged = with_training(with_training(request, "copier", **files), "wide", **files)
    before, plain = keys(tagged), keys(request)
    (tmp_path / "a.txt").write_text("a cat")
    after = keys(tagged)
    assert {name for name in before if before[name] != after[name]} == downstream(request, "copier")
    assert keys(request) == plain
    folder = tmp_path / "captions"
    folder.mkdir()
    (folder / "b.txt").write_text("a dog")
    assert keys(replace(tagged, captions=folder))["copier"] == before["copier"]
    assert keys(replace(tagged, captions=folder))["wide"] != before["wide"]


def test_a_generated_original_is_as_large_as_asked_or_as_trained_or_128_pixels():
    recipe = builtin_recipes()["copier-quick"]
    assert original_side(recipe, Generated("x", size=256)) == 256
    assert original_side(recipe, Generated("x")) == 512
    assert original_side(every_kind(), Generated("x")) == 128


def test_prompts_and_seeds_go_in_turn_and_every_one_of_the_longer_is_used_once():
    assert paired(("a", "b", "c"), (1, 2)) == (("a", 1), ("b", 2), ("c", 1))
    assert paired(("a",), (1, 2)) == (("a", 1), ("a", 2))


def test_every_second_picture_of_a_gate_is_guided_and_every_one_of_an_evaluation(tmp_path):
    draws = make_plan(make_request(tmp_path)).draws
    assert draws["gate.pictures"].guidance == draws["gate.base"].guidance == (1.0, 7.0, 1.0)
    assert draws["evaluate.lora"].guidance == draws["evaluate.base"].guidance == (4.0, 4.0, 4.0)
    assert draws["second.pictures"].loras == (("copier", 1.0), ("wide", 1.0))


def test_a_dry_run_writes_nothing(tmp_path, finished):
    request = make_request(tmp_path)
    before = digests(tmp_path)
    store = StageStore(tmp_path / "data" / "stages")
    found = states(make_plan(request), store)
    assert {state.reason for state in found} == {"not made before"}
    assert digests(tmp_path) == before
    assert not (tmp_path / "data").exists()
    data, known, _ = finished
    before = digests(data)
    other = replace(known, recipe=with_value(known.recipe, "training.seed=3"))
    states(plan(other, file_digest), StageStore(data / "stages"))
    assert digests(data) == before


def reasons(request: RunRequest, data: Path) -> dict[str, str]:
    """What a dry run says of every stage."""
    return {s.stage.name: s.reason for s in states(make_plan(request), StageStore(data / "stages"))}


def test_reasons_say_what_is_reused_and_name_what_changed(finished):
    data, request, _ = finished
    assert all(reason.startswith("reused: ") for reason in reasons(request, data).values())
    told = reasons(with_training(request, "copier", learning_rate=5e-4), data)
    assert told["copier"] == "changed: learning_rate 0.001 -> 0.0005"
    assert told["wide"] == "changed: copier"
    assert told["gate.pictures"] == "changed: copier"
    assert told["gate"] == "changed: gate.pictures"
    assert told["sum"] == "changed: wide, copier"
    assert told["control"].startswith("reused: ")


@pytest.mark.parametrize(
    ("change", "stage", "reason"),
    [
        ({"optimiser": Optimiser.ADAMW_8BIT}, "copier", "optimiser adamw -> adamw8bit"),
        (
            {"captions": OTHER["captions"]},
            "wide",
            'captions.policy empty -> fixed, captions.texts [] -> ["a cat"]',
        ),
        ({"text_encoder": True, "seed": 4}, "control", "seed 1 -> 4, text_encoder false -> true"),
        (
            {"steps": 5, "rank": 5, "alpha": 1.0, "seed": 2},
            "wide",
            "alpha 2.0 -> 1.0, rank 4 -> 5, seed 1 -> 2 and 1 more",
        ),
    ],
)
def test_reasons_show_short_values_of_up_to_three_changes(finished, change, stage, reason):
    data, request, _ = finished
    assert reasons(with_training(request, stage, **change), data)[stage] == f"changed: {reason}"


def test_reasons_only_name_what_is_long(finished, tmp_path):
    data, request, _ = finished
    other = tmp_path / "checkpoint"
    other.write_bytes(b"others")
    told = reasons(replace(request, checkpoint=other), data)
    assert told["a"] == "changed: checkpoint"
    assert told["copier"] == "changed: checkpoint, a"


def test_reasons_compare_with_the_stored_stage_that_is_most_alike(finished):
    """After a run of another edit, the nearest is still the earlier run of this one."""
    data, request, _ = finished
    execute(given(request, b=Edit("outline")), data, FakeWorker())
    told = reasons(with_training(request, "wide", learning_rate=5e-4), data)
    assert told["wide"] == "changed: learning_rate 0.001 -> 0.0005"


def test_stages_with_one_key_are_said_to_be_the_same(tmp_path):
    recipe = with_control(builtin_recipes()["difference-svd-pocket"])
    request = make_request(tmp_path, recipe=recipe)
    planned = make_plan(request)
    assert planned["control"].key == planned["other"].key
    assert reasons(request, tmp_path)["control"] == "the same as 'other': made once"
    assert isinstance(recipe.stage("evaluate"), EvaluateStage)
