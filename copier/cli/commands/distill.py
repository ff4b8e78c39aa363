"""``copier distill`` and ``copier views``: sets from drawn pictures, and what views show."""

from __future__ import annotations

import argparse
from pathlib import Path

from copier.cli.model_options import add_model_options, model_options
from copier.cli.parser import Commands, finite, positive, seed
from copier.cli.session import Answer, Session
from copier.cli.text import table


def register(commands: Commands) -> None:
    """Add the commands."""
    _register_distill(commands)
    _register_views(commands)


def _register_distill(commands: Commands) -> None:
    parser = commands.add(
        "distill",
        "draw with a LoRA, pick the good pictures, get a training set",
        """
        Draw pictures with a LoRA at about half its weight, look at them, and keep the good ones as a training
        set for any recipe. Use it where a LoRA does what you want, and something that you do not want. The
        first call draws and numbers the candidates; the same call with --keep copies those that you name
        into a new folder, each with its prompt as caption, and draws nothing again.
        """,
        (
            'distill hero.safetensors "a red star" "a blue star" --count 8 --out distilled',
            'distill hero.safetensors "a red star" "a blue star" --count 8 --out distilled --keep 1,4,7-9',
            "run picture-set-pocket --pictures set=distilled/set --out again",
        ),
        _distill,
        checkpoint=True,
    )
    parser.add_argument("lora", type=Path, metavar="LORA", help="the LoRA to draw with")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to draw")
    parser.add_argument("--weight", type=finite, metavar="W", help="of the LoRA (default: 0.5)")
    parser.add_argument("--seed", type=seed, default=1, metavar="N", help="first seed (default: 1)")
    parser.add_argument(
        "--count", type=positive, default=4, metavar="N", help="pictures of each prompt (default: 4)"
    )
    parser.add_argument("--steps", type=positive, default=20, metavar="N", help="DDIM steps (default: 20)")
    parser.add_argument("--guidance", type=finite, default=7.0, metavar="X", help="CFG (default: 7)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("distilled"),
        metavar="DIR",
        help="folder of the candidates and of the set (default: distilled)",
    )
    parser.add_argument("--keep", metavar="LIST", help="what becomes the set: all, or numbers, as in 1,4,7-9")
    add_model_options(parser)


def _distill(arguments: argparse.Namespace, session: Session) -> Answer:
    from copier.app import distilling
    from copier.app.pictures import DrawRequest

    weight = distilling.WEIGHT if arguments.weight is None else arguments.weight
    request = DrawRequest(
        checkpoint=session.checkpoint(),
        prompts=tuple(arguments.prompts),
        seeds=range(arguments.seed, arguments.seed + arguments.count),
        out=arguments.out,
        loras=((arguments.lora, weight),),
        steps=arguments.steps,
        guidance=arguments.guidance,
        device=arguments.device,
        threads=arguments.threads,
        model=model_options(arguments),
    )
    total = len(request.prompts) * len(request.seeds)
    numbers = distilling.picked(arguments.keep, total) if arguments.keep is not None else ()
    found = distilling.candidates(
        request, session.settings, observer=session.progress, cancel=session.stoppable()
    )
    data = [
        {"number": one.number, "file": str(one.path), "prompt": one.prompt, "seed": one.seed} for one in found
    ]
    if arguments.keep is None:
        rows = [(str(one.number), one.path.name, one.prompt) for one in found]
        told = f"{table(rows)}\nlook at them, then the same command with --keep all, or --keep 1,4,7-9"
        return Answer({"candidates": data, "set": None}, told)
    place = distilling.new_set([found[number - 1] for number in numbers], arguments.out)
    return Answer(
        {"candidates": data, "set": str(place), "kept": list(numbers)},
        f"{len(numbers)} of {total} pictures, with their prompts as captions: {place}",
    )


def _register_views(commands: Commands) -> None:
    parser = commands.add(
        "views",
        "show the crops and zooms that a recipe makes of a picture",
        """
        Write the views of a picture that a recipe's set of crops and zooms has, and list their places: what
        `copier run framing` trains on. The same places are cut from A and from B.
        """,
        ("views framing-pocket a.png --out views", "views framing a.png --set-name views-b"),
        _views,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="name of a recipe, or a recipe's .json file")
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="picture files or folders")
    parser.add_argument("--set-name", metavar="NAME", help="which set of the recipe (default: its first)")
    parser.add_argument(
        "--out", type=Path, default=Path("views"), metavar="DIR", help="folder (default: views)"
    )


def _views(arguments: argparse.Namespace, session: Session) -> Answer:
    from copier.app.captions import pictures_at
    from copier.app.own_recipes import find_recipe
    from copier.app.views import write_views

    recipe = find_recipe(arguments.recipe, session.settings)
    written = write_views(recipe, pictures_at(arguments.pictures), arguments.out, arguments.set_name)
    data = [{"file": str(path), "view": str(view)} for path, view in written]
    return Answer({"views": data}, table([(path.name, str(view)) for path, view in written]))
