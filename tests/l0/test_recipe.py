"""Specs, field table and graph rules; what the built-in recipes say."""

from __future__ import annotations

import inspect
import typing
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from copier import recipe as recipe_module
from copier.captioning import Policy
from copier.codec import builtin_recipes
from copier.errors import BadInput, UnknownName
from copier.fields import FIELDS
from copier.recipe import (
    PAIR,
    BaseLora,
    CaptionPolicy,
    CaptionSpec,
    CombineStage,
    ConceptAction,
    ConceptSpec,
    DifferenceStage,
    EvaluateStage,
    FileStage,
    GateStage,
    Optimiser,
    PictureSet,
    Precision,
    RankMethod,
    RankPolicy,
    Recipe,
    ResizeStage,
    Schedule,
    Spec,
    Target,
    Trainer,
    TrainingSpec,
    TrainStage,
    WeightedLora,
    with_control,
)

SPECS: dict[str, type[Any]] = {
    name: cls
    for name, cls in inspect.getmembers(recipe_module, inspect.isclass)
    if issubclass(cls, Spec) and cls is not Spec
}
LEAST: dict[str, dict[str, Any]] = {
    "PictureSet": {"name": "a"},
    "BaseLora": {"lora": "copier"},
    "WeightedLora": {"lora": "copier"},
    "FileStage": {"name": "look"},
    "CombineStage": {"name": "lora", "terms": (WeightedLora("a"), WeightedLora("b"))},
    "TrainStage": {"name": "copier", "pictures": "a"},
    "GateStage": {"name": "gate", "lora": "copier", "prompts": ("p",)},
    "DifferenceStage": {"name": "lora", "minuend": "b", "subtrahend": "a"},
    "ResizeStage": {"name": "lora", "lora": "wide"},
    "EvaluateStage": {"name": "evaluate", "lora": "lora", "prompts": ("p",)},
    "Recipe": {"name": "r", "title": "R", "stages": (TrainStage("copier", "a"),), "result": "copier"},
}
"""What each spec needs at least to be made."""


def least(spec: str, /, **changes: Any) -> Any:
    """A spec of that class, with as little said as possible."""
    return SPECS[spec](**{**LEAST.get(spec, {}), **changes})


def graph(*stages: Any, result: str = "copier") -> Recipe:
    """A recipe of a copier and ``stages``."""
    return Recipe("r", "R", (TrainStage("copier", "a"), *stages), result)


def sets(*pictures: PictureSet) -> Recipe:
    """A recipe of a copier with these sets of pictures."""
    return Recipe("r", "R", (TrainStage("copier", "a"),), "copier", pictures=pictures)


def test_the_field_table_has_every_field_of_every_spec_and_no_other():
    assert {name: set(known) for name, known in FIELDS.items()} == {
        name: {field.name for field in fields(cls)} for name, cls in SPECS.items()
    }


def test_every_field_has_a_label_and_a_help_text():
    known = [field for spec in FIELDS.values() for field in spec.values()]
    assert all(field.label and field.help.endswith((".", ".)")) for field in known)


BOUNDED = [
    (name, field, side)
    for name, known in FIELDS.items()
    for field, entry in known.items()
    for side in ("minimum", "maximum")
    if getattr(entry, side) is not None
]


@pytest.mark.parametrize(("name", "field", "side"), BOUNDED)
def test_a_number_beyond_its_bound_is_refused_with_value_and_limit(name, field, side):
    limit = getattr(FIELDS[name][field], side)
    hint = typing.get_type_hints(SPECS[name])[field]
    many = typing.get_origin(hint) is tuple
    step = 1 if int in (hint, *typing.get_args(hint)) else 1e-3 * max(1.0, abs(limit))
    beyond = limit - step if side == "minimum" else limit + step
    with pytest.raises(BadInput, match=rf"{name}\.{field} is .*allowed value is") as caught:
        least(name, **{field: (beyond,) if many else beyond})
    assert str(limit) in str(caught.value)


@pytest.mark.parametrize(("name", "field", "side"), BOUNDED)
def test_the_bound_itself_is_accepted(name, field, side):
    limit = getattr(FIELDS[name][field], side)
    many = typing.get_origin(typing.get_type_hints(SPECS[name])[field]) is tuple
    changes = {field: (limit,) if many else limit}
    if field == "steps":
        changes["warmup_steps"] = 0
    if field == "warmup_steps":
        changes["steps"] = 1_000_000
    made = least(name, **changes)
    assert getattr(made, field) == changes[field]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(BadInput, match=r"learning_rate is .*finite"):
        TrainingSpec(learning_rate=value)
    with pytest.raises(BadInput, match=r"weights is .*finite"):
        least("EvaluateStage", weights=(1.0, value))


def test_a_whole_number_too_large_for_a_float_is_refused_like_any_other():
    with pytest.raises(BadInput, match="largest allowed"):
        TrainingSpec(steps=10**400)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_specs_cannot_be_changed(name):
    spec = least(name)
    field = fields(spec)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(spec, field, getattr(spec, field))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CaptionSpec(CaptionPolicy.FIXED), "'fixed' has 0 texts"),
        (lambda: CaptionSpec(CaptionPolicy.FIXED, ("a", "b")), "'fixed' has 2 texts"),
        (lambda: CaptionSpec(CaptionPolicy.VARIED, ("a",)), "'varied' has 1 text"),
        (lambda: CaptionSpec(CaptionPolicy.EMPTY, ("a",)), "takes no texts"),
        (lambda: CaptionSpec(CaptionPolicy.FILES, ("a",)), "takes no texts"),
        (lambda: TrainingSpec(min_timestep=500, max_timestep=500), "min_timestep is 500.*below"),
        (lambda: TrainingSpec(steps=10, warmup_steps=11), "warmup_steps is 11.*10"),
        (lambda: TrainingSpec(resolution=500), "resolution is 500.*multiple of 64"),
        (lambda: TrainingSpec(fp8_base=True), "fp8_base.*fp16 or bf16, but it is fp32"),
        (lambda: TrainingSpec(optimiser_arguments=("betas",)), "'betas' is not understood"),
        (lambda: TrainingSpec(optimiser_arguments=("a=b=1",)), "'a=b=1' is not understood"),
        (lambda: TrainingSpec(optimiser_arguments=("path='x'",)), "is not understood: write name=value"),
        (lambda: TrainingSpec(optimiser_arguments=("a b=1",)), "'a b=1' is not understood"),
        (lambda: TrainingSpec(optimiser_arguments=("weight_decay=0",)), "set weight_decay"),
        (lambda: TrainingSpec(optimiser_arguments=("lr=1e-3",)), "set learning_rate"),
        (lambda: RankPolicy(RankMethod.SV_FRO), "sv_fro is 0"),
        (lambda: RankPolicy(RankMethod.SV_CUMULATIVE, threshold=1.1), "sv_cumulative is 1.1"),
        (lambda: RankPolicy(RankMethod.SV_RATIO, threshold=0.5), "sv_ratio is 0.5"),
        (lambda: least("EvaluateStage", weights=(1.0, 0.5, 1.0)), "give each once"),
        (lambda: least("EvaluateStage", weights=()), "weights is empty"),
        (lambda: least("GateStage", prompts=()), "prompts is empty"),
        (lambda: least("TrainStage", name=""), "name is empty"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: graph(TrainStage("lora", "b", base=(BaseLora("copyer"),))), "'copyer'.*'copier'"),
        (lambda: graph(TrainStage("x", "b", start="y"), TrainStage("y", "b")), "needed by 'x'.*'y'"),
        (lambda: graph(TrainStage("x", "b", start="x")), "needed by 'x'.*'x'"),
        (lambda: graph(TrainStage("copier", "b")), "two stages have the name 'copier'"),
        (lambda: graph(GateStage("gate", "copier", ("p",)), ResizeStage("x", "gate")), "'gate' makes none"),
        (lambda: graph(result="copyer"), "recipe's result"),
        (lambda: graph(GateStage("gate", "copier", ("p",)), result="gate"), "makes no LoRA"),
        (lambda: graph(TrainStage("x", "c")), "set of pictures .needed by 'x'. 'c'"),
        (lambda: graph(TrainStage("../x", "b")), "name '../x': use letters"),
        (lambda: graph(TrainStage("a", "b")), "name 'a', which means something else"),
        (lambda: graph(TrainStage("training", "b")), "'training', which means"),
        (lambda: graph(TrainStage("gate", "b")), "'gate', which means"),
        (lambda: Recipe("a/b", "R", (TrainStage("copier", "a"),), "copier"), "recipe's name is 'a/b'"),
        (lambda: Recipe("r", "R", (), "copier"), "stages is empty"),
        (lambda: graph(EvaluateStage("e", "copier", ("p",), pictures="a")), "changed set of pictures.*'a'"),
        (lambda: graph(CombineStage("sum", (WeightedLora("none"),))), "'none'"),
        (lambda: sets(PictureSet("b", of="a"), PictureSet("a")), "earlier set of originals.*'b'.*'a'"),
        (lambda: sets(*PAIR, PictureSet("c", of="b")), "earlier set of originals.*'c'.*'b'"),
        (lambda: sets(*PAIR, PictureSet("a")), "two sets of pictures have the name 'a'"),
        (lambda: sets(*PAIR, PictureSet("../c")), "called '../c'"),
        (lambda: sets(*PAIR, PictureSet("Sheet")), "called 'sheet', like the report's"),
        (lambda: graph(FileStage("look"), result="look"), "'look' is the LoRA file itself"),
        (lambda: sets(*PAIR, PictureSet("copier")), "name 'copier', which means something else"),
    ],
)
def test_graphs_that_cannot_run_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()


@pytest.mark.parametrize(
    "change",
    [
        {"optimiser_arguments": ("betas=(0.9, 0.99)", "eps=1e-08", "amsgrad=True")},
        {"fp8_base": True, "precision": Precision.BF16},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_sd_scripts_alone_can_is_refused_with_the_builtin_trainer(change):
    stages = (TrainStage("x", "a", training=TrainingSpec(**change)),)
    with pytest.raises(BadInput, match=f"'x' sets {next(iter(change))}, which the builtin trainer does not"):
        Recipe("r", "R", stages, "x")
    assert Recipe("r", "R", stages, "x", trainer=Trainer.SD_SCRIPTS).stages == stages


PAIRED = {"target": Target.PAIR}
CONCEPT = ConceptSpec(ConceptAction.ERASE, "a red star", neutral="a star")
BY_TEXT = TrainingSpec(resolution=64)


def test_what_the_builtin_trainer_alone_can_is_refused_with_sd_scripts():
    paired = TrainStage("x", "b", training=TrainingSpec(**PAIRED))
    text = TrainStage("x", training=BY_TEXT, concept=CONCEPT)
    for stage, name in ((paired, "target"), (text, "concept")):
        assert Recipe("r", "R", (stage,), "x").stages == (stage,)
        with pytest.raises(BadInput, match=f"'x' sets {name}, which sd-scripts does not.*trainer=builtin"):
            Recipe("r", "R", (stage,), "x", trainer=Trainer.SD_SCRIPTS)


@pytest.mark.parametrize("trainer", list(Trainer))
@pytest.mark.parametrize("change", [{"pair_mask": True}, {"masked_loss": True}], ids=str)
def test_masks_are_for_both_trainers(trainer, change):
    stage = TrainStage("x", "b", training=TrainingSpec(**change))
    assert Recipe("r", "R", (stage,), "x", trainer=trainer).stages == (stage,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingSpec(pair_mask=True, masked_loss=True), "choose the pictures' own masks"),
        (lambda: graph(TrainStage("x", "a", training=TrainingSpec(**PAIRED))), "sets target.*'a' are orig"),
        (lambda: graph(TrainStage("x", "a", training=TrainingSpec(pair_mask=True))), "sets pair_mask.*orig"),
        (lambda: TrainStage("x"), "neither pictures nor a concept"),
        (lambda: TrainStage("x", "a", training=BY_TEXT, concept=CONCEPT), "erase a concept by text.*'a'"),
        (lambda: TrainStage("x", training=TrainingSpec(resolution=0), concept=CONCEPT), "the resolution 0"),
        (
            lambda: TrainStage("x", training=replace(BY_TEXT, text_encoder=True, **PAIRED), concept=CONCEPT),
            "sets target, text_encoder, which means nothing without pictures",
        ),
        (lambda: ConceptSpec(contexts=("on white",)), "'on white' must have {} once"),
        (lambda: ConceptSpec(contexts=("{} beside {}",)), "must have {} once"),
        (lambda: ConceptSpec(ConceptAction.MOVE, "a star", "a star"), "'a star' is to be moved to itself"),
        (lambda: ConceptSpec(ConceptAction.MOVE, "a star"), "'a star' is to be moved to itself"),
        (lambda: ConceptSpec(ConceptAction.ERASE, neutral="a star"), "no prompt of a concept to erase"),
        (lambda: graph(TrainStage("x", training=BY_TEXT, concept=CONCEPT, check_every=2)), "has no gate"),
        (
            lambda: graph(
                TrainStage("x", training=BY_TEXT, concept=replace(CONCEPT, contexts=("{} on blue",))),
                EvaluateStage("e", "x", ("a red star on blue",)),
            ),
            "'a red star on blue' of 'e' is also a training caption",
        ),
    ],
)
def test_targets_masks_and_concepts_that_make_no_sense_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()


def test_the_control_of_a_pair_is_trained_on_b_alone():
    lora = TrainStage("copier", "b", training=TrainingSpec(pair_mask=True, **PAIRED))
    recipe = Recipe("r", "R", (lora, EvaluateStage("e", "copier", ("p",))), "copier")
    assert with_control(recipe).stage("control").training == TrainingSpec()


def test_a_forward_reference_is_an_unknown_name_that_offers_the_earlier_ones():
    with pytest.raises(UnknownName) as caught:
        graph(DifferenceStage("x", "copier", "later"), TrainStage("later", "b"))
    assert caught.value.name == "later"
    assert "copier" in str(caught.value)


@pytest.mark.parametrize(
    "captions",
    [CaptionSpec(CaptionPolicy.FIXED, ("seen",)), CaptionSpec(CaptionPolicy.VARIED, ("x", "seen"))],
)
def test_a_prompt_that_was_trained_on_measures_nothing(captions):
    trained = TrainStage("lora", "b", training=TrainingSpec(captions=captions))
    for stage in (GateStage("gate", "copier", ("new", "seen")), EvaluateStage("evaluate", "lora", ("seen",))):
        with pytest.raises(BadInput, match=r"'seen'.*also a training caption"):
            graph(trained, stage)
        graph(trained, replace(stage, prompts=("new", "unseen")))


def test_the_empty_prompt_was_trained_on_where_captions_are_empty():
    with pytest.raises(BadInput, match="'' of 'gate'"):
        graph(GateStage("gate", "copier", ("",)))


MEASURED = sorted(
    name
    for name, recipe in builtin_recipes().items()
    if any(isinstance(stage, EvaluateStage) for stage in recipe.stages)
)


@pytest.mark.parametrize("name", MEASURED)
def test_prompts_of_gates_and_evaluations_are_never_training_captions(name):
    recipe = builtin_recipes()[name]
    prompts = {p for s in recipe.stages if isinstance(s, (GateStage, EvaluateStage)) for p in s.prompts}
    captions = {text for stage in recipe.trainings() for text in stage.training.captions.texts}
    assert len(prompts) >= 16
    assert not prompts & captions
    if name.endswith("-pocket"):
        assert len(captions) >= 16
    for stage in recipe.stages:
        if isinstance(stage, (GateStage, EvaluateStage)):
            assert max(len(stage.prompts), len(stage.seeds)) >= 16


# The articles' numbers: METHOD of the copier, difference and comparison articles.


def test_copier_quick_has_the_beginners_articles_numbers():
    recipe = builtin_recipes()["copier-quick"]
    copier, second = recipe.trainings()
    for stage in (copier, second):
        training = stage.training
        assert (training.rank, training.alpha, training.steps) == (16, 16.0, 500)
        assert (training.learning_rate, training.batch_size) == (1e-3, 1)
        assert training.optimiser is Optimiser.ADAMW_8BIT
        assert (training.schedule, training.warmup_steps) == (Schedule.COSINE, 0)
        assert training.captions == CaptionSpec(CaptionPolicy.EMPTY)
        assert training.resolution == 512
        assert not training.text_encoder
    assert (copier.pictures, copier.base, second.pictures) == ("a", (), "b")
    assert second.base == (BaseLora("copier", 1.0),)
    assert recipe.result == second.name
    assert recipe.trainer is Trainer.SD_SCRIPTS


def test_copier_thorough_has_the_copier_memos_numbers():
    recipe = builtin_recipes()["copier-thorough"]
    copier, second = recipe.trainings()
    assert (copier.training.steps, second.training.steps) == (512 * 6, 4096)
    for stage in (copier, second):
        training = stage.training
        assert (training.rank, training.alpha, training.learning_rate) == (64, 32.0, 1e-4)
        assert (training.optimiser, training.warmup_steps) == (Optimiser.ADAMW, 500)
        assert training.captions == CaptionSpec(CaptionPolicy.FILES, shuffle=True, keep_tokens=0)
        assert (training.batch_size, training.resolution) == (1, 512)
    assert second.base == (BaseLora("copier", 1.0),)
    final = recipe.stage(recipe.result)
    assert isinstance(final, ResizeStage)
    assert (final.lora, final.ranks) == (second.name, RankPolicy(RankMethod.RANK, 8))


@pytest.mark.parametrize(
    ("name", "ranks"),
    [("difference-svd", (RankMethod.RANK, 8)), ("difference-exact", (RankMethod.EXACT, 8))],
)
def test_the_difference_recipes_overfit_both_and_subtract_a_from_b(name, ranks):
    recipe = builtin_recipes()[name]
    a, b = recipe.trainings()
    assert (a.pictures, b.pictures) == ("a", "b")
    assert a.training.steps == b.training.steps == 4096
    assert a.base == b.base == ()
    final = recipe.stage(recipe.result)
    assert isinstance(final, DifferenceStage)
    assert (final.minuend, final.subtrahend) == (b.name, a.name)
    assert (final.minuend_ratio, final.subtrahend_ratio) == (1.0, -1.0)
    assert (final.ranks.method, final.ranks.rank) == ranks


@pytest.mark.parametrize("name", ["copier-quick", "difference-svd", "difference-exact"])
def test_pocket_recipes_are_the_same_graphs_trained_by_the_builtin_trainer(name):
    recipes = builtin_recipes()
    original, pocket = recipes[name], recipes[f"{name}-pocket"]
    assert [(type(s), s.name, s.references) for s in pocket.stages] == [
        (type(s), s.name, s.references) for s in original.stages
    ]
    assert pocket.trainer is Trainer.BUILTIN
    assert {s.training.captions.policy for s in pocket.trainings()} == {CaptionPolicy.VARIED}


@pytest.mark.parametrize("name", MEASURED)
def test_the_control_is_the_training_on_b_on_the_plain_checkpoint(name):
    recipe = builtin_recipes()[name]
    controlled = with_control(recipe)
    control = controlled.stage("control")
    on_b = [stage for stage in recipe.trainings() if recipe.given_for(stage.pictures) == "b"][-1]
    assert isinstance(control, TrainStage)
    assert (control.pictures, control.base, control.start) == (on_b.pictures, (), "")
    assert control.training == replace(on_b.training, target=Target.NOISE)
    evaluations = [stage for stage in controlled.stages if isinstance(stage, EvaluateStage)]
    assert [stage.control for stage in evaluations] == ["control"]
    assert [s for s in controlled.stages if s is not control and not isinstance(s, EvaluateStage)] == [
        s for s in recipe.stages if not isinstance(s, EvaluateStage)
    ]
    assert with_control(controlled) == controlled


def test_a_control_takes_no_name_that_is_in_use():
    recipe = graph(TrainStage("control", "b"), EvaluateStage("evaluate", "control", ("p",)))
    evaluation = with_control(recipe).stage("evaluate")
    assert isinstance(evaluation, EvaluateStage)
    assert (evaluation.lora, evaluation.control) == ("control", "control-2")


def test_a_recipe_that_trains_nothing_on_b_has_no_control():
    with pytest.raises(BadInput, match="trains nothing on B"):
        with_control(graph(EvaluateStage("evaluate", "copier", ("p",))))
    with pytest.raises(BadInput, match="measures nothing"):
        with_control(graph())


def test_a_stage_is_found_by_name():
    recipe = builtin_recipes()["copier-quick"]
    assert recipe.stage("gate") is recipe.stages[1]
    with pytest.raises(UnknownName, match=r"'gat'.*'gate'"):
        recipe.stage("gat")


def test_caption_files_are_reduced_as_the_recipe_says() -> None:
    texts = ["a red cat, white background, smile", "a blue cat, white background, from behind"]
    files = CaptionSpec(CaptionPolicy.FILES)
    assert files.reduced(texts) == texts
    varies = replace(files, kept=Policy.VARIES)
    assert varies.reduced(texts) == ["a red cat, smile", "a blue cat, from behind"]
    constant = replace(files, kept=Policy.CONSTANT)
    assert constant.reduced(texts) == ["white background", "white background, from behind"]
    assert replace(constant, keep=("smile",)).reduced(texts) == ["smile", ""]
    with pytest.raises(BadInput, match="keeps every tag"):
        replace(files, keep=("smile",))
    with pytest.raises(BadInput, match="not one tag"):
        replace(constant, keep=("one, two",))
