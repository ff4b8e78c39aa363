"""The program's services, for every front end: check, preview and run recipes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from copier.app.checks import check_data_folder, check_device
from copier.app.crew import Crew, find_kit
from copier.app.room import check_room, largest_rank, lora_room, picture_room, processed_room
from copier.app.settings import Settings
from copier.checkpoint.autoencoder_file import autoencoder_keys
from copier.checkpoint.family import detect
from copier.checkpoint.fit import require_modules_fit
from copier.checkpoint.header import Header, read_header
from copier.checkpoint.prediction import parameterisation
from copier.checkpoint.structure import check_clip_skip
from copier.checkpoint.whole import whole_checkpoint
from copier.digest import DigestMemory
from copier.errors import BadInput, BadPicture, NotInstalled
from copier.evaluation.report import ReportFiles
from copier.images.effects import apply_effect, check_edit
from copier.images.framing import views_of
from copier.images.pairs import (
    check_pair,
    check_same_names,
    check_size,
    fitted,
    read_mask,
    read_picture,
)
from copier.images.sizes import Size, sizes_text
from copier.model_options import AS_IT_IS, ModelOptions
from copier.ops.lora_file import read_lora
from copier.ops.lora_reader import LoraReader
from copier.pipeline import results
from copier.pipeline.plan import Plan, caption_places, caption_texts, original_side, plan
from copier.pipeline.runner import FinishedRun, StageState, run, states
from copier.pipeline.store import StageStore
from copier.progress import CancelToken, Observer, ignore
from copier.recipe import (
    CaptionPolicy,
    EvaluateStage,
    GateStage,
    Target,
    Trainer,
    TrainStage,
    reseeded,
    with_control,
)
from copier.request import NOTHING_MORE, Edit, Fit, Generated, PictureFiles, RunRequest, Source
from copier.training.command import SCRIPTS, check_extra
from copier.training.preflight import (
    check_lora_layout,
    check_memory,
    check_precision,
    memory_needed,
    trainable_checkpoint,
)
from copier.training.sd_scripts import list_options


@dataclass(frozen=True)
class Outcome:
    """Finished runs, the files of each by stage name, and the report (None without evaluation).

    ``repeats`` are for each run the same with other training seeds. ``places`` are all files that were
    handed over but for the report's: what was there already with the same content is among them.
    """

    runs: tuple[FinishedRun, ...]
    files: tuple[dict[str, Path], ...]
    report: ReportFiles | None
    repeats: tuple[tuple[FinishedRun, ...], ...] = ()
    places: tuple[Path, ...] = ()

    @property
    def everything(self) -> tuple[FinishedRun, ...]:
        """The runs, and after them those with other seeds."""
        return (*self.runs, *(one for others in self.repeats for one in others))

    @property
    def result(self) -> Path:
        """The first run's LoRA."""
        return self.files[0][self.runs[0].request.recipe.result]


def check(request: RunRequest, settings: Settings, *, seeds: int = 1) -> None:
    """Refuse bad input; nothing is written. ``seeds`` is how often all of it will be trained.

    Raises:
        BadCheckpoint, BadPicture, BadInput: the checkpoint, the pictures, the recipe, the device or
            a folder cannot be used; the message names the value, the limit and the remedy.
    """
    checkpoint = check_checkpoint(request.checkpoint, request.recipe.trainer, options=request.model)
    check_device(request.device)
    _check_trainer(request, settings, checkpoint)
    _check_masks(request)
    _check_target(request, checkpoint)
    sizes = _check_pictures(request)
    _check_captions(request)
    given = {name: read_header(path) for name, path in request.loras.items()}
    for path in request.loras.values():
        check_lora(path, checkpoint)
        with _naming(path):
            read_lora(path)
    _check_starts(request, given)
    _check_out(request)
    files = seeds * lora_room(request.recipe, checkpoint, given) + picture_room(request.recipe, sizes)
    files += processed_room(request.recipe, checkpoint)
    check_folders(request.out, settings, files=files)


def preview(
    request: RunRequest, settings: Settings, *, control: bool = False, seeds: int = 1
) -> tuple[StageState, ...]:
    """The stages of ``request`` with keys and reasons, each once; nothing is run or written.

    Raises:
        BadInput and its kin: as ``check``.
    """
    (wanted,) = check_runs([request], settings, control=control, seeds=seeds)
    store = StageStore(settings.stages)
    digest = DigestMemory(settings.digests, write=False).digest
    found: dict[str, StageState] = {}
    for one in plans(wanted, settings, digest, seeds=seeds):
        for state in states(one, store):
            found.setdefault(state.stage.key, state)
    return tuple(found.values())


def plans(
    wanted: RunRequest, settings: Settings, digest: Callable[[Path], str], *, seeds: int
) -> list[Plan]:
    """What ``execute`` would do for a run that ``check_runs`` gave: its plan, and one for each repetition.

    Raises:
        BadInput and its kin: as ``check``.
    """
    engine = Crew(settings, device=wanted.device, threads=wanted.threads).engine(wanted.recipe)
    return [plan(one, digest, engine=engine) for one in (wanted, *repetitions(wanted, seeds))]


def check_runs(
    requests: Sequence[RunRequest], settings: Settings, *, control: bool = False, seeds: int = 1
) -> list[RunRequest]:
    """What ``execute`` would run, with the control where it is wanted; refuses bad input, writes nothing.

    Raises:
        BadInput and its kin: as ``check`` and ``repetitions``.
    """
    wanted = [_wanted(request, control=control) for request in requests]
    for request in wanted:
        repetitions(request, seeds)
    for request in wanted:
        check(request, settings, seeds=seeds)
    return wanted


def execute(
    requests: Sequence[RunRequest],
    settings: Settings,
    *,
    control: bool = False,
    seeds: int = 1,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> Outcome:
    """Run one or several requests that share the original; publish their files and one report.

    ``control`` adds the plain LoRA on B to every request, for comparison. With more than one of
    ``seeds`` each request is run again with the next training seeds; the report has the mean and the range
    of the figures, and the files are those of the first.

    Raises:
        BadInput and its kin: as ``check``, before anything is trained or written.
        TrainingFailed, Cancelled: finished stages stay in the store.
    """
    cancel = cancel or CancelToken()
    wanted = check_runs(requests, settings, control=control, seeds=seeds)
    repeated = [repetitions(request, seeds) for request in wanted]
    for folder in {request.out for request in wanted}:
        results.prepare_folder(folder)
    settings.data.mkdir(parents=True, exist_ok=True)
    store = StageStore(settings.stages)
    store.remove_leftovers()
    finished, files = [], []
    places: list[Path] = []
    with Crew(settings, device=wanted[0].device, threads=wanted[0].threads) as crew:

        def carried_out(request: RunRequest) -> FinishedRun:
            digest = DigestMemory(settings.digests).digest
            planned = plan(request, digest, engine=crew.engine(request.recipe))
            return run(
                request, planned, store, crew.worker, functools.partial(crew.train, request), observer, cancel
            )

        for request in wanted:
            finished.append(carried_out(request))
            files.append(results.publish_run(finished[-1], seen=places.append))
        repeats = [tuple(carried_out(one) for one in others) for others in repeated]
    written = None
    if all(any(stage.kind == "evaluate" for stage in one.plan.stages) for one in finished):
        written = results.report(finished, files, repeats)
    return Outcome(tuple(finished), tuple(files), written, tuple(repeats), tuple(places))


def repetitions(request: RunRequest, seeds: int) -> tuple[RunRequest, ...]:
    """``request`` with the next training seeds, so that there are ``seeds`` of them with its own.

    Raises:
        BadInput: less than one seed, seeds past the largest, or nothing that would be measured.
    """
    if seeds < 1:
        raise BadInput(f"{seeds} training seeds: give at least 1")
    if seeds > 1 and not request.recipe.measures:
        raise BadInput(
            f"the recipe {request.recipe.name!r} measures nothing, so there is nothing to repeat with "
            f"{seeds} seeds: leave out --seeds"
        )
    if seeds > 1 and not any(request.recipe.trainings()):
        raise BadInput(f"the recipe {request.recipe.name!r} trains nothing: leave out --seeds")
    return tuple(replace(request, recipe=reseeded(request.recipe, offset)) for offset in range(1, seeds))


def _check_trainer(request: RunRequest, settings: Settings, checkpoint: Header) -> None:
    """Refuse what the recipe's trainer cannot do, and sd-scripts that is not installed."""
    if request.recipe.trainer is Trainer.BUILTIN:
        if request.scripts != NOTHING_MORE:
            raise BadInput(
                "extra arguments and samples on the way are for sd-scripts, but the recipe "
                f"{request.recipe.name!r} trains with the builtin trainer: leave them out, or add --set "
                "trainer=sd-scripts"
            )
        return
    try:
        kit = find_kit(settings, device=request.device)
    except NotInstalled as error:
        raise NotInstalled(f"{error}; or use the builtin trainer: --set trainer=builtin") from error
    check_memory(memory_needed(checkpoint, kit.device))
    for stage in request.recipe.trainings():
        check_precision(stage.training.precision.value, kit.device)
    starts = {stage.start for stage in request.recipe.trainings()}
    for name, path in request.loras.items():
        if name not in starts:
            check_lora_layout(path)
    if request.scripts.extra:
        script = SCRIPTS[detect(checkpoint).family].file
        options = list_options(kit.scripts(settings, threads=request.threads), script)
        check_extra(request.scripts.extra, options, script=script)


def _check_target(request: RunRequest, checkpoint: Header) -> None:
    """Refuse the semantic target for a checkpoint that predicts velocity: it changes the noise."""
    for stage in request.recipe.trainings():
        if stage.training.target is Target.SEMANTIC and parameterisation(checkpoint, request.model).velocity:
            raise BadInput(
                f"the training {stage.name!r} has the target 'semantic', but {request.checkpoint.name} "
                "predicts velocity: choose the target 'pair'"
            )


def _check_masks(request: RunRequest) -> None:
    """Refuse a training that counts the loss by masks where none of its pictures has one."""
    for stage in request.recipe.trainings():
        if not stage.training.masked_loss:
            continue
        files = request.files_of(stage.pictures)
        if not any(read_mask(path) for path in (files.paths if files else ())):
            raise BadInput(
                f"the training {stage.name!r} counts the loss by masks, but no picture of {stage.pictures!r} "
                "has transparent parts: erase what is not to count, or set masked_loss to false"
            )


def check_checkpoint(
    path: Path, trainer: Trainer | None = None, *, options: ModelOptions = AS_IT_IS
) -> Header:
    """The header of the checkpoint at ``path``, which ``trainer`` can train, and the worker can draw with.

    Raises:
        BadInput, BadCheckpoint: there is none, it is something else, or of another family; or ``options``
            do not go with it, or name a file that is no autoencoder.
    """
    if not path.is_file():
        raise BadInput(f"there is no checkpoint {path}: give the path of a .safetensors file")
    header = trainable_checkpoint(path) if trainer is Trainer.SD_SCRIPTS else read_header(path)
    check_clip_skip(whole_checkpoint(header, path.name).structure, options.clip_skip)
    if options.vae is not None:
        autoencoder_keys(read_header(options.vae), options.vae.name)
    return header


def check_lora(path: Path, checkpoint: Header) -> None:
    """Raise ``BadInput`` unless the LoRA at ``path`` fits the checkpoint; the message has its name."""
    with _naming(path), LoraReader(path) as lora:
        lora.require_factors()
        require_modules_fit(lora.shapes, lora.family, checkpoint)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Bad input within is said of that file."""
    try:
        yield
    except BadInput as error:
        raise type(error)(f"{path.name}: {error}") from error


def check_folders(out: Path, settings: Settings, *, report: bool = True, files: int = 0) -> None:
    """Refuse an output or data folder that cannot be used, or whose disk is nearly full.

    ``report`` tells whether a report will be written there, which replaces an earlier one; ``files`` are
    the bytes that LoRAs and sets of pictures will take.

    Raises:
        BadInput: the message says which folder, why, and what to do; nothing is written.
    """
    results.check_folder(out, report=report)
    check_data_folder(settings.data)
    check_room(out, "--out", files=files)
    check_room(settings.data, "--data", files=files)


def _wanted(request: RunRequest, *, control: bool) -> RunRequest:
    request = request.written_out()
    return replace(request, recipe=with_control(request.recipe)) if control else request


def set_sizes(request: RunRequest) -> dict[str, tuple[Size, ...]]:
    """The size of every picture of each set, as it will be trained on; one set may have several.

    Raises:
        BadPicture: one cannot be read, or its sides are no multiples of 64.
        UnknownName, BadInput: there is no such edit, or it does not take its parameters.
    """
    sizes: dict[str, tuple[Size, ...]] = {}
    for pictures in request.recipe.pictures:
        if pictures.part_of:
            whole = sizes[pictures.part_of]
            places = [pictures.number - 1] if pictures.number else range(len(whole))
            seen = [view.size for place in places for view in views_of(pictures, whole[place], place)]
            sizes[pictures.name] = tuple(seen)
            continue
        source = request.pictures[pictures.name]
        if isinstance(source, Edit):
            check_edit(source.name, source.parameters)
            sizes[pictures.name] = sizes[pictures.of]
        elif isinstance(source, Generated):
            side = original_side(request.recipe, source)
            sizes[pictures.name] = ((side, side),)
        else:
            sizes[pictures.name] = tuple(_size(path, source.fit) for path in source.paths)
    return sizes


def _size(path: Path, fit: Fit) -> Size:
    image = fitted(read_picture(path), fit)
    check_size(image, path.name)
    return image.size


def _check_pictures(request: RunRequest) -> dict[str, tuple[Size, ...]]:
    """``set_sizes``; refuses what cannot be trained on, and pairs that are none."""
    sizes = set_sizes(request)
    for pictures in request.recipe.given:
        if not pictures.of:
            continue
        a, b = request.pictures[pictures.of], request.pictures[pictures.name]
        _check_pairs(a, b, sizes[pictures.of], sizes[pictures.name])
    for stage in request.recipe.trainings():
        if stage.concept.by_text:
            continue
        generated = isinstance(request.source_of(stage.pictures), Generated)
        _check_resolution(stage, sizes[stage.pictures], generated=generated)
    return sizes


def _check_starts(request: RunRequest, given: Mapping[str, Header]) -> None:
    """Refuse LoRA files of a higher rank than the training that starts from them."""
    for stage in request.recipe.trainings():
        if stage.start not in given:
            continue
        rank = largest_rank(given[stage.start])
        limit = max(stage.training.rank, stage.training.conv_rank)
        if rank > limit:
            raise BadInput(
                f"{request.loras[stage.start].name} has rank {rank}, and the training {stage.name!r}, which "
                f"starts from it, has {limit}: raise its rank, or resize the LoRA first"
            )


def _check_out(request: RunRequest) -> None:
    """Refuse an output folder from which a set's pictures come: what a run writes would join the set."""
    for name, source in request.pictures.items():
        if not isinstance(source, PictureFiles) or len(source.paths) == 1:
            continue
        if request.out.resolve() in {path.parent.resolve() for path in source.paths}:
            raise BadInput(
                f"the output folder {request.out} holds the pictures {name!r}: choose another with --out"
            )


def _check_pairs(a: Source, b: Source, sizes_a: Sequence[Size], sizes_b: Sequence[Size]) -> None:
    """Refuse changed pictures that do not go with their originals, or that are equal to them."""
    if isinstance(a, Generated):
        if isinstance(b, PictureFiles) and sizes_a != sizes_b:
            count = "" if len(b.paths) == 1 else f"; there are {len(b.paths)} of them"
            raise BadPicture(
                f"A will be drawn at {sizes_text(sizes_a)} and B is {sizes_text(sizes_b)}{count}: a pair "
                "must have one size; make B by editing the A that an earlier run drew, and give both as files"
            )
        return
    assert isinstance(a, PictureFiles)
    if isinstance(b, PictureFiles):
        check_same_names(a.paths, b.paths)
    for number, path in enumerate(a.paths):
        first = fitted(read_picture(path), a.fit)
        if isinstance(b, Edit):
            second, remedy = apply_effect(first, b.name, b.parameters), "choose a stronger edit"
        else:
            assert isinstance(b, PictureFiles)
            second, remedy = fitted(read_picture(b.paths[number]), b.fit), "edit B"
        which = "" if len(a.paths) == 1 else f" of {path.name}"
        check_pair(first, second, which)
        if first.tobytes() == second.tobytes():
            raise BadPicture(f"A and B{which} are identical: there is nothing to learn; {remedy}")


def _check_captions(request: RunRequest) -> None:
    """Refuse caption files that cannot be read, that hold what is measured with, or that no stage reads."""
    if request.captions is not None:
        if not request.captions.is_dir():
            raise BadInput(f"there is no folder {request.captions}: give one that is there with --captions")
        policies = {one.training.captions.policy for one in request.recipe.trainings()}
        if CaptionPolicy.FILES not in policies:
            raise BadInput(
                f"the recipe {request.recipe.name!r} reads no caption files: leave out --captions, or add "
                """--set 'training.captions={"policy": "files"}'"""
            )
    measured = {
        prompt
        for stage in request.recipe.stages
        if isinstance(stage, (EvaluateStage, GateStage))
        for prompt in stage.prompts
    }
    for stage in request.recipe.trainings():
        for path, text in zip(caption_places(request, stage), caption_texts(request, stage), strict=True):
            for line in text.splitlines():
                if line.strip() in measured:
                    raise BadInput(
                        f"the caption {line.strip()!r} in {path} is also a prompt that the recipe measures "
                        "with: change one of them, or the figures would be of what was trained on"
                    )


def _check_resolution(stage: TrainStage, sizes: Sequence[Size], *, generated: bool) -> None:
    """Refuse pictures the largest of which has not the training's resolution: nothing scales them."""
    wanted = stage.training.resolution
    if wanted and max(map(max, sizes)) != wanted:
        remedy = "draw A in that size" if generated else "scale the pictures"
        raise BadPicture(
            f"the pictures {stage.pictures!r} are {sizes_text(sizes)}, but the training {stage.name!r} has a "
            f"resolution of {wanted} px, the limit for the longer side: {remedy}, or add --set "
            "training.resolution=0 to train at the pictures' own size"
        )
