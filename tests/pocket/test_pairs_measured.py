"""How the recipes on pairs are measured: nothing that is drawn for it was trained on."""

from __future__ import annotations

from copier.codec import load_recipe, with_values
from copier.pipeline.plan import paired
from copier.pocket.pairs import MEASURED, METHODS, PAIRS
from copier.recipe import EvaluateStage


def test_every_method_is_measured_on_as_many_pairs_that_no_training_saw() -> None:
    for method in METHODS.values():
        recipe = with_values(load_recipe(method.recipe), (*MEASURED, *method.changes))
        (spec,) = (stage for stage in recipe.stages if isinstance(stage, EvaluateStage))
        assert len(set(paired(spec.prompts, spec.seeds))) == PAIRS
        trained = {text for stage in recipe.trainings() for text in stage.training.captions.texts}
        assert not trained & set(spec.prompts)
