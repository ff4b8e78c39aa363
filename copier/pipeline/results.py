"""What a finished run hands over in the user's folder: the pair, the LoRAs, the recipe and the report."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from copier.checkpoint.header import read_header
from copier.codec import RECIPE_KEY, recipe_to_json
from copier.digest import file_digest
from copier.disk import existing_parent
from copier.errors import BadInput, CopierError
from copier.evaluation.report import GENERATOR, ReportFiles, write_report
from copier.ops.lora_file import plain_metadata, read_lora, write_lora
from copier.pipeline.files import LORA, picture_paths
from copier.pipeline.plan import PlannedStage
from copier.pipeline.reporting import file_stem, report_data
from copier.pipeline.runner import FinishedRun
from copier.pipeline.store import StageStore
from copier.temporary import copy_if_absent, create_temporary, remove_leftovers

PROVENANCE_KEY = "copier.provenance"
"""Metadata key with the digests of checkpoint, pictures and LoRAs that the LoRA was made from, as JSON."""


def check_folder(out: Path, *, report: bool = True) -> None:
    """Refuse an output folder that cannot be used; nothing is written.

    Raises:
        BadInput: it is no folder, cannot be written, or, where a ``report`` will be written, holds one
            that is not ours.
    """
    there = existing_parent(out)
    if not there.is_dir():
        raise BadInput(f"the output folder {out} cannot be made: {there} is a file; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(
            f"the output folder {out} cannot be written: {there} is write-protected; choose another folder"
        )
    foreign = _foreign_report(out) if report else None
    if foreign is not None:
        raise BadInput(
            f"{foreign} is not one of this program's reports, and it would be replaced: choose another "
            "folder with --out"
        )


def _foreign_report(out: Path) -> Path | None:
    """A file of another program under the name of one of the report's; None where there is none.

    A run that was killed while it wrote the report may have left the page alone, or page and sheet.
    """
    figures, page, sheet = out / "report.json", out / "report.html", out / "sheet.png"
    if figures.exists():
        try:
            ours = json.loads(figures.read_text(encoding="utf-8")).get("schema") == "copier.report"
        except (OSError, ValueError, AttributeError, RecursionError):
            ours = False
        return None if ours else figures
    if page.exists():
        try:
            ours = GENERATOR in page.read_text(encoding="utf-8")
        except (OSError, ValueError):
            ours = False
        return None if ours else page
    return sheet if sheet.exists() else None


def prepare_folder(out: Path) -> None:
    """Make the output folder and sweep leftovers of killed runs.

    Raises:
        BadInput: it cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe, path = create_temporary(out / "probe")
        probe.close()
        path.unlink()
    except OSError as error:
        raise BadInput(
            f"the output folder {out} cannot be written: {error.strerror}; choose another with --out"
        ) from error
    for leftover in out.glob(".*.tmp"):
        target = re.match(r"\.(.+)\.[0-9a-f]{8}\.tmp$", leftover.name)
        if target:
            remove_leftovers(out / target[1])


def publish(
    source: Path, target: Path, *, same: Callable[[Path, Path], bool] = lambda source, place: False
) -> Path:
    """Copy ``source`` to ``target``, whole or not at all; never over another file.

    A file of the same content stays as it is, and so does one that ``same`` takes for as good; another one
    under that name makes this one ``<stem>-2``, ``<stem>-3``, ... Returns where the content now is.
    """
    digest = file_digest(source)
    place, number = target, 1
    while not (_holds(place, digest) or (place.is_file() and same(source, place))):
        if copy_if_absent(source, place, point="out"):
            break
        number += 1
        place = target.with_name(f"{target.stem}-{number}{target.suffix}")
    return place


def _holds(place: Path, digest: str) -> bool:
    return place.is_file() and file_digest(place) == digest


def publish_run(
    run: FinishedRun, *, seen: Callable[[Path], None] = lambda place: None
) -> dict[str, Path]:
    """Put pictures, LoRAs and recipe of a finished run into its output folder; paths by stage name.

    What does not depend on changed pictures, such as the copier, bears its stage's name, the result
    that of the run's title or edit, anything else both. Of a set of several pictures the first one's
    path is given. LoRA files that the run was given are not copied. ``seen`` is told every place.
    """
    out, stem = run.request.out, file_stem(run)
    published: dict[str, Path] = {}
    for pictures in run.request.recipe.pictures:
        if pictures.number:
            continue  # one of a set that is published whole
        name = f"{stem}-{pictures.name}" if pictures.of else pictures.name
        sources = picture_paths(run.entries[pictures.name])
        names = [f"{name}.png"] if len(sources) == 1 else [f"{name}-{i + 1}.png" for i in range(len(sources))]
        places = [publish(source, out / one) for source, one in zip(sources, names, strict=True)]
        published[pictures.name] = places[0]
        for place in places:
            seen(place)
    # In the store, so that what a killed run leaves is swept with its other leftovers.
    store = StageStore(run.stages[0].entry.folder.parent)
    with store.scratch("publish") as scratch:
        for one in run.stages:
            if one.stage.kind != "file" and one.entry.path(LORA).is_file():
                name = _lora_name(run, one.stage.name, stem)
                # In a folder of its own: two stages' files may have one name, and are published side by side.
                final = scratch / one.stage.name / f"{name}.safetensors"
                final.parent.mkdir()
                _write_final(run, one.stage, final)
                published[one.stage.name] = publish(final, out / final.name, same=_same_origin)
                seen(published[one.stage.name])
        recipe = scratch / f"{stem}-recipe.json"
        recipe.write_text(json.dumps(recipe_to_json(run.request.recipe), indent=1) + "\n", encoding="utf-8")
        seen(publish(recipe, out / recipe.name))
    return published


def _lora_name(run: FinishedRun, stage: str, stem: str) -> str:
    """``publish_run`` says how it is made; a result that is called like another stage bears both names."""
    others = {one.stage.name.casefold() for one in run.stages if one.stage.name != stage}
    if stage == run.request.recipe.result and stem.casefold() not in others:
        return stem
    return f"{stem}-{stage}" if run.plan.depends_on_change(stage) else stage


def _same_origin(first: Path, second: Path) -> bool:
    """Whether two LoRA files hold the outcome of one stage, by their provenance.

    Their recipes may differ in what that stage does not depend on, such as a control.
    """
    try:
        origins = [read_header(path).metadata.get(PROVENANCE_KEY) for path in (first, second)]
    except CopierError:
        return False
    return origins[0] is not None and origins[0] == origins[1]


def _write_final(run: FinishedRun, stage: PlannedStage, path: Path) -> None:
    """The stage's LoRA in fp16, with the recipe and where it comes from in its metadata."""
    lora = read_lora(run.entries[stage.name].path(LORA))
    # What sd-scripts says of a training has its free arguments in it, and those do not travel.
    about = plain_metadata(lora) if run.request.scripts.extra else lora.metadata
    metadata = {
        **about,
        "ss_output_name": path.stem,
        "modelspec.title": path.stem,
        RECIPE_KEY: json.dumps(recipe_to_json(run.request.recipe)),
        PROVENANCE_KEY: json.dumps(_provenance(run, stage), sort_keys=True),
    }
    write_lora(path, lora.weights, metadata, dtype="fp16")


def _provenance(run: FinishedRun, stage: PlannedStage) -> dict[str, object]:
    """The stage's key and the SHA-256 of all it was made from; no paths, no names of files.

    ``pictures`` are the sets that it needs, directly or not, by name, ``loras`` the stored LoRAs of the
    stages that it needs.
    """
    entries = run.entries
    pictures = {
        one.name: [entries[one.name].record.files[path.name] for path in picture_paths(entries[one.name])]
        for one in run.request.recipe.pictures
        if run.plan.depends_on(stage.name, one.name)
    }
    loras = {
        name: entry.record.files[LORA]
        for name, entry in entries.items()
        if name != stage.name and LORA in entry.record.files and run.plan.depends_on(stage.name, name)
    }
    return {
        "stage": stage.name,
        "key": stage.key,
        "checkpoint_sha256": run.plan.checkpoint,
        "pictures_sha256": pictures,
        "loras": loras,
    }


def report(
    runs: Sequence[FinishedRun],
    published: Sequence[dict[str, Path]],
    repeats: Sequence[Sequence[FinishedRun]] = (),
) -> ReportFiles:
    """Write the report of one or several runs that share the original, into the first one's folder.

    ``repeats`` are for each run the same with other training seeds (``report_data``).
    """
    return write_report(report_data(runs, published, repeats), runs[0].request.out)
