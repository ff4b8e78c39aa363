"""``copier run``: a recipe on a pair."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copier.cli.model_options import add_model_options, model_options
from copier.cli.parser import Commands, Parser, assignment, named_path, positive, seed
from copier.cli.session import Answer, Session
from copier.cli.text import number, stage_table, table
from copier.errors import BadInput
from copier.request import Fit

if TYPE_CHECKING:
    from copier.app.service import Outcome
    from copier.recipe import Recipe
    from copier.request import RunRequest, Source

_ORIGINAL = "give either --a FILE, or --a-prompt TEXT to have it drawn"
_CHANGED = "give either --b FILE, or --edit NAME to have it made from A"


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "run",
        "train a LoRA from a pair, with a recipe",
        """
        Train a LoRA from a pair of pictures that differ in one thing. Use it for your own edit; `copier
        recipes` lists the recipes. A is a picture file or drawn from a prompt; B is a file or A with a
        built-in edit (`copier edit --list`). Two folders make a paired set: as many pictures in each, of
        the same names. A recipe file may have other sets of pictures (--pictures) and start from LoRA
        files (--lora). Stages that were made before are reused, so a run that was
        stopped goes on where it was; --dry-run shows which, and why, and writes nothing.
        """,
        (
            'run copier-quick-pocket --a-prompt "a red star on cyan background" --edit grayscale',
            "run copier-quick --checkpoint model.safetensors --a a.png --b b.png",
            "run copier-quick-pocket --a a.png --edit outline --edit-set width=5 --control --dry-run",
            "run difference-svd-pocket --a a.png --b b.png --set training.steps=400 --set lora.ranks.rank=4",
            "run my-recipe.json --a plain/ --b lettered/ --lora look=look.safetensors",
        ),
        _run,
        checkpoint=True,
    )
    add_run_options(parser).add_argument(
        "--dry-run", action="store_true", help="only show the stages, with keys and reasons"
    )


def add_run_options(parser: Parser) -> Any:
    """The recipe, the pair and all that says how it is run; the group of the last."""
    parser.add_argument("recipe", metavar="RECIPE", help="name of a recipe, or a recipe's .json file")
    pair = parser.add_argument_group("the pair (one of --a, --a-prompt; one of --b, --edit)")
    pair.add_argument("--a", type=Path, metavar="PATH", help="the original, a picture file, or a folder")
    pair.add_argument("--a-prompt", metavar="TEXT", help="let the checkpoint draw the original")
    pair.add_argument("--a-seed", type=seed, metavar="N", help="seed of the drawn original (default: 1)")
    pair.add_argument("--a-size", type=int, metavar="PX", help="its side (default: the recipe's resolution)")
    pair.add_argument("--b", type=Path, metavar="PATH", help="the original with your edit, or a folder")
    pair.add_argument("--edit", metavar="NAME", help="make B from A by a built-in edit")
    pair.add_argument(
        "--edit-set",
        type=assignment,
        action="append",
        metavar="K=V",
        help="a parameter of the edit; may be repeated",
    )
    pair.add_argument(
        "--pictures",
        type=named_path,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="file or folder of another set of the recipe; may be repeated",
    )
    pair.add_argument(
        "--lora",
        type=named_path,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="LoRA file that the recipe starts from; may be repeated",
    )
    pair.add_argument(
        "--fit",
        choices=[one.value for one in Fit],
        default=Fit.NONE.value,
        help="crop or pad files whose sides are no multiples of 64; nothing is scaled (default: refuse them)",
    )
    pair.add_argument(
        "--captions", type=Path, metavar="DIR", help="caption files, for recipes that read them"
    )
    add_model_options(parser)
    how = parser.add_argument_group("the run")
    how.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change a number of the recipe, as in training.steps=300 or lora.training.rank=8 "
        "(`copier recipes NAME` shows them); may be repeated",
    )
    how.add_argument(
        "--epochs",
        type=positive,
        metavar="N",
        help="steps of every training as other trainers count them: N times all pictures, by the batch size",
    )
    how.add_argument(
        "--repeats", type=positive, metavar="N", help="with --epochs: every picture N times an epoch"
    )
    how.add_argument(
        "--control",
        action="store_true",
        help="also train a plain LoRA on B with the same settings, and compare",
    )
    how.add_argument(
        "--out",
        type=Path,
        default=Path("out"),
        metavar="DIR",
        help="folder of the outcome (default: out); LoRAs that are there stay, the report is replaced",
    )
    add_seeds(how)
    _add_script_options(parser)
    how.add_argument("--title", default="", metavar="TEXT", help="what the result is called")
    return how


def _add_script_options(parser: Parser) -> None:
    group = parser.add_argument_group("where sd-scripts trains")
    group.add_argument(
        "--card",
        type=positive,
        metavar="GB",
        help="for SDXL: fit the recipe to a card of so much memory (default: the one that is there)",
    )
    group.add_argument(
        "--sample-every", type=positive, default=0, metavar="N", help="draw pictures every N training steps"
    )
    group.add_argument(
        "--save-every", type=positive, default=0, metavar="N", help="save the LoRA every N steps as well"
    )
    group.add_argument(
        "--extra",
        default="",
        metavar="ARGUMENTS",
        help="more arguments for its script, in one text, as in --extra='--max_grad_norm 0.5'; they go "
        "into no recipe and no LoRA",
    )


def add_seeds(parser: Any) -> None:
    """The option ``--seeds``."""
    parser.add_argument(
        "--seeds",
        type=positive,
        default=1,
        metavar="N",
        help="train all of it with N seeds, and report mean and range of the figures (default: 1)",
    )


def _run(arguments: argparse.Namespace, session: Session) -> Answer:
    request = requested(arguments, session)
    from copier.app import figures, service

    if arguments.dry_run:
        states = service.preview(request, session.settings, control=arguments.control, seeds=arguments.seeds)
        data = figures.preview_json(states)
        return Answer({"recipe": request.recipe.name, **data}, _preview_text(data))
    return execute((request,), session, control=arguments.control, seeds=arguments.seeds)


def execute(
    requests: tuple[RunRequest, ...], session: Session, *, control: bool, seeds: int = 1
) -> Answer:
    """Run the requests with progress; files and main figures."""
    from copier.app import figures, service

    session.kept = (
        f"finished stages are kept in {session.settings.stages}; the same command goes on from there"
    )
    outcome: Outcome = service.execute(
        requests,
        session.settings,
        control=control,
        seeds=seeds,
        observer=session.progress,
        cancel=session.stoppable(),
    )
    session.progress.finish()
    data = figures.outcome_json(outcome)
    if data["gate"] is not None and not data["gate"]["passed"]:
        session.note(
            "the copier did not pass its gate: it does not draw A every time, so more than the "
            f"difference was learnt; give it more steps (--set {data['gate']['lora']}.training.steps=...)"
        )
    return Answer(data, outcome_text(data))


def _check_choice(arguments: argparse.Namespace) -> None:
    """Refuse options of the pair that exclude each other."""
    a, b = arguments.a is not None, arguments.b is not None
    prompt, edit = arguments.a_prompt is not None, arguments.edit is not None
    if a and prompt:
        raise BadInput(f"both --a and --a-prompt are given: {_ORIGINAL}")
    if b and edit:
        raise BadInput(f"both --b and --edit are given: {_CHANGED}")
    if not prompt and (arguments.a_seed is not None or arguments.a_size is not None):
        raise BadInput("--a-seed and --a-size belong to --a-prompt, but A is a file: leave them out")
    if not edit and arguments.edit_set:
        raise BadInput("--edit-set belongs to --edit, but B is a file: leave it out")
    if arguments.repeats is not None and arguments.epochs is None:
        raise BadInput("--repeats belongs to --epochs: give both, or --set training.steps=N")
    for option, values in (("--pictures", arguments.pictures), ("--lora", arguments.lora)):
        names = [name for name, _ in values]
        for name in names:
            if names.count(name) > 1:
                raise BadInput(f"{option} {name}=... is given twice: give it once")


def requested(arguments: argparse.Namespace, session: Session) -> RunRequest:
    """The run that the options of ``add_run_options`` ask for."""
    _check_choice(arguments)
    from copier.app.cards import changed
    from copier.app.own_recipes import find_recipe
    from copier.request import RunRequest, ScriptOptions, in_epochs

    checkpoint = session.checkpoint()
    recipe = find_recipe(arguments.recipe, session.settings)
    recipe, note = changed(
        recipe, arguments.set, checkpoint, session.settings, device=arguments.device, card=arguments.card
    )
    if note:
        session.note(note)
    request = RunRequest(
        recipe=recipe,
        checkpoint=checkpoint,
        pictures=_pictures(arguments, recipe),
        loras=dict(arguments.lora),
        out=arguments.out,
        title=arguments.title,
        device=arguments.device,
        threads=arguments.threads,
        captions=arguments.captions,
        model=model_options(arguments),
        scripts=ScriptOptions(_words(arguments.extra), arguments.sample_every, arguments.save_every),
    )
    return in_epochs(request, arguments.epochs, arguments.repeats or 1) if arguments.epochs else request


def _words(text: str) -> tuple[str, ...]:
    """The arguments in one text, as a shell splits it."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise BadInput(f"the extra arguments {text!r} cannot be split ({error}): close the quotes") from None


def _pictures(arguments: argparse.Namespace, recipe: Recipe) -> dict[str, Source]:
    """Where each of the recipe's sets comes from; --edit makes the changed sets that have no files."""
    from copier.request import Edit, Generated, PictureFiles

    paths = dict(arguments.pictures)
    for name in ("a", "b"):
        path = getattr(arguments, name)
        if path is not None and name in paths:
            raise BadInput(f"both --{name} and --pictures {name}=... are given: give one")
        if path is not None:
            paths[name] = path
    fit = Fit(arguments.fit)
    pictures: dict[str, Source] = {name: PictureFiles.at(path, fit) for name, path in paths.items()}
    if arguments.a_prompt is not None:
        if "a" in paths:
            raise BadInput("both --a-prompt and --pictures a=... are given: give one")
        drawn_seed = 1 if arguments.a_seed is None else arguments.a_seed
        pictures["a"] = Generated(arguments.a_prompt, drawn_seed, size=arguments.a_size or 0)
    if arguments.edit is not None:
        open_sets = [one.name for one in recipe.given if one.of and one.name not in pictures]
        if not open_sets:
            raise BadInput(
                "--edit has nothing to do: every changed set of the recipe has files, or there is none; "
                "leave out --edit"
            )
        for name in open_sets:
            pictures[name] = Edit(arguments.edit, dict(arguments.edit_set or ()))
    wanted = {one.name for one in recipe.given}
    if "a" in wanted - set(pictures):
        raise BadInput(f"the original A is missing: {_ORIGINAL}")
    if "b" in wanted - set(pictures):
        raise BadInput(f"the changed picture B is missing: {_CHANGED}")
    return pictures


def _preview_text(data: dict[str, Any]) -> str:
    count = len(data["stages"])
    return (
        f"{stage_table(data['stages'])}\n{data['reused']} of {count} stages would be reused; "
        "nothing was run or written"
    )


def outcome_text(data: dict[str, Any]) -> str:
    """The outcome of runs as a few lines."""
    lines = []
    gate = data["gate"]
    if gate is not None:
        lines.append(
            (
                "gate",
                f"{'passed' if gate['passed'] else 'NOT passed'}: median {number(gate['median'])} (limit "
                f"{number(gate['median_limit'])}), {gate['within']} of {gate['count']} within "
                f"{number(gate['single_limit'])}",
            )
        )
    lines += [(one["title"], text) for one in data["results"] for text in result_lines(one)]
    lines += [("disagreement", text) for text in data["disagreements"]]
    checks = data["checks"]
    if checks["count"]:
        lines.append(("checks", f"{checks['passed']} of {checks['count']} passed"))
        for one in checks["missed"]:
            relation = ("at most", "at least") if not one["strict"] else ("below", "above")
            wanted = f"{relation[one['at_least']]} {number(one['limit'])}"
            lines.append(("", f"missed: {one['label']} {number(one['value'])}, wanted {wanted}"))
    reused, count = data["reused"], len(data["stages"])
    lines.append(("stages", f"{reused} of {count} stages reused, {data['seconds']:.0f} s"))
    paths = list(dict.fromkeys(path for files in data["files"] for path in files.values()))
    paths += list((data["report"] or {}).values())
    lines += [("files" if i == 0 else "", path) for i, path in enumerate(paths)]
    return table(lines)


def result_lines(result: dict[str, Any]) -> list[str]:
    """Effect and leakage (or change) of one result at +1, and of its control."""
    ours, theirs = result["lora"], result["control"]
    if ours is None:
        return ["not drawn at +1"]
    names = (
        ("effect", "leakage", "projection")
        if result["measures"] == "effect"
        else ("magnitude", "consistency")
    )
    texts = []
    for name in names:
        beside = f" (control {number(theirs[name])})" if theirs else ""
        texts.append(f"{name} {number(ours[name])}{beside}")
    lines = ["at +1: " + ", ".join(texts)]
    if result.get("suggested_weights"):
        low, high = result["suggested_weights"]
        lines.append(f"best weight {result['best_weight']:g}, suggested {low:g} to {high:g}")
    return lines
