"""``copier generate``, ``copier edit`` and ``copier evaluate``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from copier.cli.commands.run import result_lines
from copier.cli.model_options import add_model_options, model_options
from copier.cli.parser import Commands, assignment, finite, positive, seed, weighted_file
from copier.cli.session import Answer, Session
from copier.cli.text import table
from copier.errors import BadInput


def register(commands: Commands) -> None:
    """Add the commands."""
    _register_generate(commands)
    _register_edit(commands)
    _register_evaluate(commands)


def _register_generate(commands: Commands) -> None:
    parser = commands.add(
        "generate",
        "draw pictures from prompts, with LoRAs",
        """
        Draw pictures from prompts with the checkpoint and any number of LoRAs, each at its weight. Use it
        to see what a LoRA does: the same prompt and seed with and without it. Files are named after
        prompt, seed and LoRAs, and none is ever replaced.
        """,
        (
            'generate "a red star on cyan background"',
            'generate "a red star on cyan background" --lora demo/grayscale.safetensors=0.8 --seed 7',
            'generate "a cat" "a dog" --checkpoint model.safetensors --count 4 --size 512 --out cats',
        ),
        _generate,
        checkpoint=True,
    )
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to draw")
    parser.add_argument(
        "--lora",
        type=weighted_file,
        action="append",
        default=[],
        metavar="FILE[=W]",
        help="a LoRA and its weight (default: 1); may be repeated",
    )
    parser.add_argument("--seed", type=seed, default=1, metavar="N", help="first seed (default: 1)")
    parser.add_argument(
        "--count", type=positive, default=1, metavar="N", help="pictures of each prompt, seeds counting up"
    )
    parser.add_argument("--negative", default="", metavar="TEXT", help="what not to draw")
    parser.add_argument("--steps", type=positive, default=20, metavar="N", help="DDIM steps (default: 20)")
    parser.add_argument("--guidance", type=finite, default=7.0, metavar="X", help="CFG (default: 7)")
    parser.add_argument(
        "--size", metavar="PX|WxH", help="side, or width x height (default: what the checkpoint is used to)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("pictures"), metavar="DIR", help="folder (default: pictures)"
    )
    add_model_options(parser)


def _generate(arguments: argparse.Namespace, session: Session) -> Answer:
    width, height = _size(arguments.size)
    from copier.app.pictures import DrawRequest, draw

    request = DrawRequest(
        checkpoint=session.checkpoint(),
        prompts=tuple(arguments.prompts),
        seeds=range(arguments.seed, arguments.seed + arguments.count),
        out=arguments.out,
        loras=tuple(arguments.lora),
        negative=arguments.negative,
        steps=arguments.steps,
        guidance=arguments.guidance,
        width=width,
        height=height,
        device=arguments.device,
        threads=arguments.threads,
        model=model_options(arguments),
    )
    drawn = draw(request, session.settings, observer=session.progress, cancel=session.stoppable())
    data = [{"file": str(one.path), "prompt": one.prompt, "seed": one.seed} for one in drawn]
    return Answer({"pictures": data}, "\n".join(str(one.path) for one in drawn))


def _size(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 0
    width, separator, height = text.lower().partition("x")
    try:
        return int(width), int(height) if separator else int(width)
    except ValueError:
        raise BadInput(f"--size {text!r}: write it as 512, or 768x512") from None


def _register_edit(commands: Commands) -> None:
    parser = commands.add(
        "edit",
        "apply a built-in edit to a picture",
        """
        Make B from A by one of the built-in edits. Use it to see an edit before you train it, or as a start
        for your own. B is written as PNG, without loss; --list shows the edits and their numbers.
        """,
        (
            "edit --list",
            "edit grayscale a.png b.png",
            "edit outline a.png b.png --set width=5 --set strength=0.8",
        ),
        _edit,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the edit")
    parser.add_argument("source", nargs="?", type=Path, metavar="IN", help="the picture")
    parser.add_argument("target", nargs="?", type=Path, metavar="OUT", help="the edited picture, .png")
    parser.add_argument("--list", action="store_true", help="list the edits with their parameters")
    parser.add_argument(
        "--set",
        type=assignment,
        action="append",
        default=[],
        metavar="K=V",
        help="a parameter of the edit; may be repeated",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def _edit(arguments: argparse.Namespace, session: Session) -> Answer:
    if not arguments.list and arguments.target is None:
        raise BadInput(
            "an edit needs NAME IN OUT, as in `copier edit grayscale a.png b.png`; --list shows the names"
        )
    from copier.app import pictures
    from copier.app.edits import edits_json

    if arguments.list:
        edits = edits_json()
        rows = [
            (
                one["name"],
                ", ".join(
                    f"{p['name']} {p['default']:g} ({p['minimum']:g} to {p['maximum']:g})"
                    for p in one["parameters"]
                ),
                one["explanation"],
            )
            for one in edits
        ]
        return Answer({"edits": edits}, table(rows, ("edit", "parameters (bounds)", "what it does")))
    data = pictures.edit_picture(
        arguments.name,
        arguments.source,
        arguments.target,
        dict(arguments.set),
        overwrite=arguments.overwrite,
    )
    for warning in data["warnings"]:
        session.note(warning)
    text = f"{data['output']}: {data['width']} x {data['height']} px, {100 * data['changed']:.1f} % changed"
    return Answer(data, text)


def _register_evaluate(commands: Commands) -> None:
    parser = commands.add(
        "evaluate",
        "measure what a LoRA does",
        """
        Draw a LoRA at several weights and measure it: with --edit, the edit that it should do, effect (1 is
        ideal, 0 is none) and leakage (unwanted change over wanted change); without it only how large and
        how consistent the change is. Use it on any LoRA, and name a second one with --control to compare.
        Prompts and numbers are those of the recipe that the LoRA carries, or of a built-in one.
        """,
        (
            "evaluate demo/grayscale.safetensors --edit grayscale",
            "evaluate mine.safetensors --edit outline --control plain.safetensors --weight 0.5 --weight 1",
            'evaluate lora.safetensors --checkpoint model.safetensors --prompt "a cat" --prompt "a dog"',
        ),
        _evaluate,
        checkpoint=True,
    )
    parser.add_argument("lora", type=Path, metavar="LORA", help="the LoRA to measure")
    parser.add_argument("--edit", metavar="NAME", help="the built-in edit that it should do")
    parser.add_argument(
        "--edit-set",
        type=assignment,
        action="append",
        default=[],
        metavar="K=V",
        help="a parameter of the edit; may be repeated",
    )
    parser.add_argument("--control", type=Path, metavar="LORA", help="a LoRA to compare with")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; may be repeated")
    parser.add_argument("--seed", type=seed, action="append", metavar="N", help="a seed; may be repeated")
    parser.add_argument(
        "--weight", type=finite, action="append", metavar="W", help="a weight of the strip; may be repeated"
    )
    parser.add_argument("--steps", type=positive, metavar="N", help="DDIM steps")
    parser.add_argument("--guidance", type=finite, metavar="X", help="CFG")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("evaluation"),
        metavar="DIR",
        help="folder (default: evaluation); a report of this program that is there is replaced",
    )
    add_model_options(parser)


def _evaluate(arguments: argparse.Namespace, session: Session) -> Answer:
    if arguments.edit_set and arguments.edit is None:
        raise BadInput("--edit-set belongs to --edit: name the edit, or leave it out")
    from copier.app import figures, measuring
    from copier.request import Edit

    checkpoint = session.checkpoint()
    given = {
        "prompts": arguments.prompt and tuple(arguments.prompt),
        "seeds": arguments.seed and tuple(arguments.seed),
        "weights": arguments.weight and tuple(sorted(set(arguments.weight))),
        "sampling_steps": arguments.steps,
        "guidance": arguments.guidance,
    }
    spec = replace(
        measuring.suggested_spec(arguments.lora, checkpoint),
        **{name: value for name, value in given.items() if value is not None},
    )
    request = measuring.MeasureRequest(
        lora=arguments.lora,
        checkpoint=checkpoint,
        out=arguments.out,
        spec=spec,
        edit=None if arguments.edit is None else Edit(arguments.edit, dict(arguments.edit_set)),
        control=arguments.control,
        device=arguments.device,
        threads=arguments.threads,
        model=model_options(arguments),
    )
    files = measuring.measure(
        request, session.settings, observer=session.progress, cancel=session.stoppable()
    )
    data = figures.measured_json(files)
    lines = [line for one in data["results"] for line in result_lines(one)]
    return Answer(data, "\n".join([*lines, *data["report"].values()]))
