"""``copier generate`` and ``copier edit``."""

from __future__ import annotations

import argparse
from pathlib import Path

from copier.cli.parser import Commands, assignment, positive, seed, weighted_file
from copier.cli.session import Answer, Session
from copier.cli.text import table
from copier.errors import BadInput


def register(commands: Commands) -> None:
    """Add the commands."""
    _register_generate(commands)
    _register_edit(commands)


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
    parser.add_argument("--guidance", type=float, default=7.0, metavar="X", help="CFG (default: 7)")
    parser.add_argument(
        "--size", metavar="PX|WxH", help="side, or width x height (default: what the checkpoint is used to)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("pictures"), metavar="DIR", help="folder (default: pictures)"
    )


def _generate(arguments: argparse.Namespace, session: Session) -> Answer:
    width, height = _size(arguments.size)
    from copier.app.pictures import DrawRequest, draw

    request = DrawRequest(
        checkpoint=session.checkpoint(),
        prompts=tuple(arguments.prompts),
        seeds=tuple(range(arguments.seed, arguments.seed + arguments.count)),
        out=arguments.out,
        loras=tuple(arguments.lora),
        negative=arguments.negative,
        steps=arguments.steps,
        guidance=arguments.guidance,
        width=width,
        height=height,
        device=arguments.device,
        threads=arguments.threads,
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

    if arguments.list:
        edits = pictures.edits_json()
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
