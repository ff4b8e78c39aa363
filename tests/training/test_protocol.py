from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from copier import errors
from copier.errors import BadInput, Cancelled, CopierError, TrainingFailed, UnknownName
from copier.model_options import ModelOptions, Prediction
from copier.progress import Phase, ProgressEvent
from copier.recipe import (
    CaptionPolicy,
    CaptionSpec,
    ConceptAction,
    ConceptSpec,
    Precision,
    Schedule,
    Target,
    TrainingSpec,
)
from copier.training import protocol

REQUESTS = [
    protocol.TrainRequest(
        checkpoint=Path("/c/base.safetensors"),
        pictures=(Path("a.png"), Path("b.png")),
        output=Path("out.safetensors"),
        training=TrainingSpec(
            steps=7,
            schedule=Schedule.LINEAR,
            captions=CaptionSpec(policy=CaptionPolicy.VARIED, texts=("ä", "b")),
        ),
        captions=("one\ntwo", ""),
        base=((Path("base.safetensors"), -0.5),),
        start=Path("start.safetensors"),
        metadata={"copier_recipe": "{}"},
        save_precision=Precision.FP16,
        model=ModelOptions(clip_skip=2, prediction=Prediction.VELOCITY),
        stage="copier",
    ),
    protocol.TrainRequest(Path("c"), (Path("a"),), Path("o"), TrainingSpec()),
    protocol.TrainRequest(
        Path("c"),
        (Path("b"), Path("d")),
        Path("o"),
        TrainingSpec(target=Target.PAIR),
        originals=(Path("a"), Path("c")),
        masks=(Path("m"), None),
        save_every=5,
        check=(protocol.SampleRequest(Path("c"), ("a",), (1,), Path("out"), guidance=(1.0,)),),
    ),
    protocol.TrainRequest(
        Path("c"), (), Path("o"), TrainingSpec(), concept=ConceptSpec(ConceptAction.MOVE, "a star", "a heart")
    ),
    protocol.SampleRequest(
        checkpoint=Path("c"),
        prompts=("a", "b"),
        seeds=(1, 2**32 - 1),
        out=Path("o"),
        loras=((Path("l"), 1.0), (Path("m"), -1.0)),
        guidance=(1.0, 7.0),
        batch_size=3,
        precision=Precision.BF16,
    ),
    protocol.SampleRequest(Path("c"), ("a",), (1,), Path("o"), guidance=4.0),
    protocol.ReconstructRequest(Path("c"), (Path("a.npy"),), Path("o")),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r).__name__)
def test_requests_survive_a_round_trip_through_one_line(request_: protocol.Request) -> None:
    line = json.dumps(protocol.request_to_json(request_))
    assert "\n" not in line
    assert protocol.request_from_json(json.loads(line)) == request_


def test_events_and_results_survive_a_round_trip() -> None:
    event = ProgressEvent(
        "train", 3, 9, loss=0.5, rate=0.1, message="x", phase=Phase.DONE, pictures=("a.png", "b.png")
    )
    again = protocol.event_from_json(json.loads(json.dumps(protocol.event_to_json(event))))
    assert (again, again.phase) == (event, Phase.DONE)
    assert isinstance(again.phase, Phase)
    trained = protocol.TrainResult(Path("o"), (0.5, 0.25), 1.5, memory=7)
    assert (
        protocol.train_result(json.loads(json.dumps(protocol.result_to_json(trained)))) == trained
    )
    drawn = protocol.PicturesResult((Path("a"), Path("b")), 1.0)
    assert protocol.pictures_result(json.loads(json.dumps(protocol.result_to_json(drawn)))) == drawn


def test_every_error_keeps_class_and_message() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    simple = [kind for kind in kinds if issubclass(kind, CopierError) and kind is not UnknownName]
    assert {BadInput, Cancelled, TrainingFailed} <= set(simple)
    for error in (*(kind("why") for kind in simple), UnknownName("recipe", "gray", ["grey", "x"])):
        again = protocol.error_from_json(json.loads(json.dumps(protocol.error_to_json(error))))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_an_error_of_unknown_class_is_a_failed_training() -> None:
    for name in ("ValueError", "difflib", "Iterable", None):
        error = protocol.error_from_json({"error": name, "message": "why"})
        assert type(error) is TrainingFailed
        assert str(error) == "why"


def test_the_parents_side_imports_nothing_heavy() -> None:
    code = (
        "import sys, copier.training.client\n"
        "assert not {'torch', 'numpy', 'PIL', 'diffusers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
