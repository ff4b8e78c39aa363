"""Commands from file to file: sums, differences, truncation, merging, inspection."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copier.cli.parser import Commands, Parser, finite, positive, weighted_file
from copier.cli.session import Answer, Session
from copier.cli.text import size, table
from copier.digest import DigestMemory, DigestsAhead
from copier.errors import BadInput

if TYPE_CHECKING:
    from copier.app.operations import ExtractReport, OperationReport

_LORA_DTYPES = ("fp16", "bf16", "fp32")
_RULES = ("rank", "sv_ratio", "sv_fro", "sv_cumulative")
_LISTED = 6
"""Tensors of one kind that are named on standard error; the JSON has all."""


def register(commands: Commands) -> None:
    """Add the commands."""
    _register_difference(commands)
    _register_combine(commands)
    _register_resize(commands)
    _register_merge(commands)
    _register_extract(commands)
    _register_inspect(commands)


def _output(parser: Parser, dtypes: tuple[str, ...] = _LORA_DTYPES, default: str = "fp16") -> None:
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT", help="the .safetensors file to write"
    )
    parser.add_argument(
        "--dtype", choices=dtypes, default=default, help=f"number format (default: {default})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def _writing(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the output is written."""
    return {name: getattr(arguments, name) for name in ("dtype", "device", "overwrite")}


def _watching(session: Session) -> dict[str, Any]:
    """It shows how far it is, and can be stopped."""
    return {"observer": session.progress, "cancel": session.stoppable()}


def _hashing(session: Session, *paths: Path) -> DigestsAhead:
    """Digests of big files, remembered or computed from now on: importing torch leaves a core idle."""
    return DigestsAhead(paths, DigestMemory(session.settings.digests))


def _ranks(parser: Parser) -> None:
    parser.add_argument(
        "--rank", type=positive, metavar="N", help="truncate to this rank (default: the inputs' largest)"
    )
    parser.add_argument("--exact", action="store_true", help="lose nothing: the inputs' ranks add up")
    parser.add_argument(
        "--conv-rank", type=positive, metavar="N", help="rank of 3x3 convolutions (default: as --rank)"
    )


def _rules(parser: Parser) -> None:
    rules = parser.add_argument_group("the rule (exactly one)")
    rules.add_argument("--rank", type=positive, metavar="N", help="this rank everywhere")
    rules.add_argument(
        "--sv-ratio", type=finite, metavar="X", help="keep singular values above the largest one / X"
    )
    rules.add_argument(
        "--sv-fro", type=finite, metavar="X", help="keep this share of the Frobenius norm, 0 to 1"
    )
    rules.add_argument(
        "--sv-cumulative", type=finite, metavar="X", help="keep this share of the singular values' sum"
    )
    parser.add_argument("--max-rank", type=positive, metavar="N", help="at most this rank")


def _rule(arguments: argparse.Namespace) -> dict[str, Any]:
    """The rule and its value by the name that the operations have for it; exactly one must be given."""
    rules = {name: getattr(arguments, name) for name in _RULES}
    given = [f"--{name.replace('_', '-')}" for name, value in rules.items() if value is not None]
    if len(given) != 1:
        what = f"{' and '.join(given)} are given" if given else "no rule is given"
        raise BadInput(f"{what}: give exactly one of --rank, --sv-ratio, --sv-fro, --sv-cumulative")
    return rules


def _register_difference(commands: Commands) -> None:
    parser = commands.add(
        "difference",
        "subtract one LoRA from another",
        """
        Write B - A of two LoRAs, or r1 B + r2 A with --ratios. Use it when A and B were trained apart on the
        two pictures: what remains is the change. Without a rank the result is truncated to the larger rank
        of the two; the residual tells what that threw away, and --exact throws away nothing.
        """,
        (
            "difference b.safetensors a.safetensors -o change.safetensors --rank 8",
            "difference b.safetensors a.safetensors -o change.safetensors --exact --dtype fp32",
            "difference b.safetensors a.safetensors -o softer.safetensors --ratios 1 -0.8",
        ),
        _difference,
    )
    parser.add_argument("minuend", type=Path, metavar="B", help="the LoRA that counts positive")
    parser.add_argument("subtrahend", type=Path, metavar="A", help="the LoRA that is taken away")
    parser.add_argument(
        "--ratios",
        type=finite,
        nargs=2,
        default=(1.0, -1.0),
        metavar=("R1", "R2"),
        help="weights of B and A (default: 1 -1)",
    )
    _ranks(parser)
    _output(parser)


def _difference(arguments: argparse.Namespace, session: Session) -> Answer:
    _check_ranks(arguments)
    from copier.app import operations

    return _answer(
        operations.difference(
            arguments.minuend,
            arguments.subtrahend,
            arguments.out,
            ratios=tuple(arguments.ratios),
            rank=arguments.rank,
            conv_rank=arguments.conv_rank,
            exact=arguments.exact,
            **_writing(arguments),
            **_watching(session),
        )
    )


def _register_combine(commands: Commands) -> None:
    parser = commands.add(
        "combine",
        "add LoRAs, each with its weight",
        """
        Write the weighted sum of any number of LoRAs as one. Use it to keep a mix that you like as a single
        file; negative weights subtract.
        """,
        (
            "combine style.safetensors=0.7 detail.safetensors=0.5 -o mix.safetensors --rank 16",
            "combine a.safetensors b.safetensors=-1 -o exact.safetensors --exact",
        ),
        _combine,
    )
    parser.add_argument(
        "loras", nargs="+", type=weighted_file, metavar="LORA[=W]", help="a LoRA and its weight (default: 1)"
    )
    _ranks(parser)
    _output(parser)


def _combine(arguments: argparse.Namespace, session: Session) -> Answer:
    _check_ranks(arguments)
    from copier.app import operations

    return _answer(
        operations.combine(
            arguments.loras,
            arguments.out,
            rank=arguments.rank,
            conv_rank=arguments.conv_rank,
            exact=arguments.exact,
            **_writing(arguments),
            **_watching(session),
        )
    )


def _check_ranks(arguments: argparse.Namespace) -> None:
    if arguments.exact and (arguments.rank or arguments.conv_rank):
        raise BadInput("--exact keeps all ranks, so --rank and --conv-rank have no place: leave one out")


def _register_resize(commands: Commands) -> None:
    parser = commands.add(
        "resize",
        "make a LoRA smaller",
        """
        Truncate a LoRA to fewer ranks, by a fixed rank or by how much each module may lose. Use it for a
        smaller file, or to drop the noise of the last ranks. The dynamic rules keep the smallest rank that
        satisfies the bound, module by module.
        """,
        (
            "resize lora.safetensors -o small.safetensors --rank 8",
            "resize lora.safetensors -o small.safetensors --sv-fro 0.95 --max-rank 32",
        ),
        _resize,
    )
    parser.add_argument("lora", type=Path, metavar="LORA", help="the LoRA to truncate")
    _rules(parser)
    parser.add_argument("--conv-rank", type=positive, metavar="N", help="rank of 3x3 convolutions")
    _output(parser)


def _resize(arguments: argparse.Namespace, session: Session) -> Answer:
    rules = _rule(arguments)
    from copier.app import operations

    return _answer(
        operations.resize(
            arguments.lora,
            arguments.out,
            **rules,
            max_rank=arguments.max_rank,
            conv_rank=arguments.conv_rank,
            **_writing(arguments),
            **_watching(session),
        )
    )


def _register_merge(commands: Commands) -> None:
    parser = commands.add(
        "merge",
        "write a checkpoint with LoRAs in it",
        """
        Write a checkpoint with LoRAs merged into its weights. Use it where a program takes no LoRAs, or to
        train on top of one elsewhere. Little of it is in memory at a time; what no LoRA changes is copied
        byte for byte.
        """,
        (
            "merge model.safetensors lora.safetensors -o merged.safetensors",
            "merge model.safetensors a.safetensors=0.6 b.safetensors=-0.3 -o merged.safetensors --dtype fp16",
            "merge model.safetensors lora.safetensors -o merged.safetensors --blocks IN04=0.5,OUT03=0",
        ),
        _merge,
    )
    parser.add_argument("base", type=Path, metavar="CHECKPOINT", help="the checkpoint, .safetensors")
    parser.add_argument(
        "loras", nargs="+", type=weighted_file, metavar="LORA[=W]", help="a LoRA and its weight (default: 1)"
    )
    parser.add_argument(
        "--blocks",
        action="append",
        default=[],
        metavar="WEIGHTS",
        help="weights by block: 17 or 26 numbers (SDXL 12 or 20, FLUX 58 or 61) with commas, or NAME=W,...; "
        "once for all LoRAs, or once for each",
    )
    _output(parser, ("keep", *_LORA_DTYPES), "keep")


def _merge(arguments: argparse.Namespace, session: Session) -> Answer:
    files = (arguments.base, *(path for path, _ in arguments.loras))
    with _hashing(session, *files) as digests:
        from copier.app import operations

        report = operations.merge(
            arguments.base,
            arguments.loras,
            arguments.out,
            blocks=arguments.blocks,
            digest=digests.digest,
            **_writing(arguments),
            **_watching(session),
        )
    if report.left_out:
        names = [f"{name} {list(shape)}" for name, shape in report.left_out]
        session.note(f"left out, {len(names)} modules for text encoders that it lacks: {_first(names)}")
    return _answer(report)


def _register_extract(commands: Commands) -> None:
    parser = commands.add(
        "extract",
        "the LoRA that turns one checkpoint into another",
        """
        Write the LoRA that is closest to TUNED - BASE, two checkpoints of one family. Use it to carry what a
        fine-tuned checkpoint learnt to other checkpoints, in a small file. Every tensor of both is compared;
        what differs and is not in the LoRA is listed. Without --conv-rank it has the modules that kohya
        trains by default, text encoders included; with it also residual blocks and samplers.
        --sv-cumulative looks at all singular values, which takes minutes.
        """,
        (
            "extract tuned.safetensors base.safetensors -o change.safetensors --rank 16",
            "extract tuned.safetensors base.safetensors -o change.safetensors --rank 32 --conv-rank 8",
            "extract tuned.safetensors base.safetensors -o change.safetensors --sv-fro 0.9 --max-rank 64",
        ),
        _extract,
    )
    parser.add_argument("tuned", type=Path, metavar="TUNED", help="the checkpoint to get to")
    parser.add_argument("base", type=Path, metavar="BASE", help="the checkpoint to start from")
    _rules(parser)
    parser.add_argument(
        "--conv-rank",
        type=positive,
        metavar="N",
        help="rank of 3x3 convolutions (default: residual blocks and samplers are left out)",
    )
    _output(parser)


def _extract(arguments: argparse.Namespace, session: Session) -> Answer:
    rules = _rule(arguments)
    with _hashing(session, arguments.tuned, arguments.base) as digests:
        from copier.app import operations

        report = operations.extract(
            arguments.tuned,
            arguments.base,
            arguments.out,
            **rules,
            max_rank=arguments.max_rank,
            conv_rank=arguments.conv_rank,
            threads=arguments.threads,
            digest=digests.digest,
            **_writing(arguments),
            **_watching(session),
        )
    for line in _left_out(report):
        session.note(line)
    rows = [("certified", f"at most {max(report.bounds.values()):.4f} x the smallest possible error")]
    return _answer(report, rows)


def _left_out(report: ExtractReport) -> list[str]:
    """What differs and is not in the LoRA: a line for each reason, with the first few names."""
    keys: dict[str, list[str]] = {}
    for one in report.left_out:
        shapes = " and ".join(str(list(shape)) for shape in (one.shape, one.base_shape) if shape is not None)
        keys.setdefault(one.why.value, []).append(f"{one.key} {shapes}")
    return [
        f"not in the LoRA, {len(names)} tensors {why}: {_first(names)}" for why, names in keys.items()
    ]


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more (--json lists all)" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"


def _answer(report: OperationReport, more: Sequence[tuple[str, str]] = ()) -> Answer:
    ranks = ", ".join(
        f"{kind} {low}" if low == high else f"{kind} {low} to {high}"
        for kind, (low, high) in report.ranks.items()
    )
    rows = [
        ("wrote", report.output),
        ("from", ", ".join(f"{Path(one.path).name} x {one.ratio:g}" for one in report.inputs)),
        ("changed", f"{report.changed} {'tensors' if report.operation == 'merge' else 'modules'}"),
        ("ranks", ranks or "-"),
    ]
    if report.operation != "merge":
        rows.append(("thrown away", f"{100 * report.residual:.3g} % of the norm"))
    rows += [*more, ("took", f"{report.seconds:.1f} s")]
    return Answer(report.to_json(), table(rows))


def _register_inspect(commands: Commands) -> None:
    parser = commands.add(
        "inspect",
        "what a LoRA or checkpoint file is and holds",
        """
        Show the family, layout, modules, ranks, norms and metadata of a file, and the recipe if it carries
        one. Use it when a LoRA does not load or does too much: the norms by block show where it acts.
        """,
        ("inspect demo/grayscale.safetensors", "inspect model.safetensors --json"),
        _inspect,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a .safetensors file")


def _inspect(arguments: argparse.Namespace, session: Session) -> Answer:
    from copier.app import operations
    from copier.digest import DigestMemory

    # What is remembered is used, but looking at a file writes nothing.
    digest = DigestMemory(session.settings.digests, write=False).digest
    found = operations.inspect(arguments.file, digest)
    if found["recipe_problem"]:
        session.note(found["recipe_problem"])
    return Answer(found, _inspected(found))


def _inspected(found: dict[str, Any]) -> str:
    rows = [
        ("file", f"{found['name']}, {size(found['bytes'])}"),
        ("is", " ".join(part for part in (found["family"], found["kind"], found["layout"]) if part)),
        ("tensors", f"{found['tensors']} ({_counts(found['dtypes'])})"),
        ("SHA-256", found["sha256"]),
    ]
    rows += [(name, text) for name, text in found["details"].items()]
    if "modules" in found:
        rows.append(("modules", f"{_counts(found['modules'])} (as {_counts(found['kinds'])})"))
        rows += [(f"rank, {kind}", _counts(ranks)) for kind, ranks in found["ranks"].items()]
        rows.append(("alpha", _counts(found["alphas"])))
        rows.append(("norm", _norm(found["norm"])))
        rows += [(f"norm, {block}", _norm(norm)) for block, norm in found["norms"].items()]
        rows += [("cannot be used", f"{name}: {why}") for name, why in found["problems"].items()]
    for part, entry in found.get("parts", {}).items():
        rows.append((part, f"{entry['parameters']:,} parameters ({', '.join(entry['dtypes'])})"))
    if found["recipe"] is not None:
        rows.append(("recipe", f"{found['recipe']['name']}: {found['recipe']['title']}"))
    rows += [(name, _short(text)) for name, text in sorted(found["metadata"].items())]
    return table(rows)


def _norm(norm: float | None) -> str:
    return "no finite number" if norm is None else f"{norm:.3g}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _short(text: str, longest: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 4]} ..."
