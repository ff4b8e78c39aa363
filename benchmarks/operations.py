"""The operations that are measured as whole processes, one function each."""

from __future__ import annotations

from benchmarks.measuring import BARE, COPIER, Series
from benchmarks.rows import Files, Row, Skipped, has_command, measured, script_ratio, sd_scripts_ratio

HALF = ("--save_precision", "fp16")


def start_up(files: Files) -> tuple[float, float]:
    """`copier --help` over a bare interpreter: seconds by the clock and of the processor."""
    series = Series({"bare": (BARE, None), "help": ((*COPIER, "--help"), None)}, 9)
    return series.over("help", "bare", "wall"), series.over("help", "bare", "cpu")


def difference(files: Files) -> Row:
    """Two LoRAs of rank 64 -> 8."""
    out = files.folder / "difference.safetensors"
    pair = (files.minuend, files.subtrahend)
    theirs = ("--models", *pair, "--ratios", "1", "-1", "--new_rank", "8", *HALF)
    return measured(
        "difference, two of rank 64 -> 8",
        ("difference", *pair, "--rank", "8"),
        out,
        files.minuend,
        lambda ours: sd_scripts_ratio(ours, "svd_merge_lora.py", theirs, out),
    )


def combine(files: Files) -> Row:
    """A LoCon with 3x3 kernels and a LoRA -> ranks 8 and 4."""
    out = files.folder / "combine.safetensors"
    return measured(
        "combine, LoCon of rank 32 + LoRA of rank 64 -> 8, kernels 4",
        ("combine", f"{files.locon}=1", f"{files.minuend}=0.5", "--rank", "8", "--conv-rank", "4"),
        out,
        files.locon,
        lambda _: "no such tool",
    )


def resize(files: Files) -> Row:
    """A LoRA of rank 64 -> 8."""
    out = files.folder / "resize.safetensors"
    theirs = ("--model", files.minuend, "--new_rank", "8", *HALF)
    return measured(
        "resize, rank 64 -> 8",
        ("resize", files.minuend, "--rank", "8"),
        out,
        files.minuend,
        lambda ours: sd_scripts_ratio(ours, "resize_lora.py", theirs, out),
    )


def merge(files: Files) -> Row:
    """A LoRA of rank 64 into a checkpoint."""
    out = files.folder / "merged.safetensors"
    theirs = ("--sd_model", files.checkpoint, "--models", files.minuend, "--ratios", "1", *HALF)

    def other_ways(ours: float) -> str:
        plain = script_ratio(ours, ("benchmarks.plain_merge", files.checkpoint, files.minuend, out))
        return f"plain script {plain}; {sd_scripts_ratio(ours, 'merge_lora.py', theirs, out)}"

    return measured(
        "merge, one of rank 64, dtype keep",
        ("merge", files.checkpoint, files.minuend),
        out,
        files.checkpoint,
        other_ways,
        pairs=5,
    )


def merge_first(files: Files) -> Row:
    """The same where no digest is remembered, once."""
    out = files.folder / "merged-first.safetensors"
    row = measured(
        "merge, the same, hashing the checkpoint for the first time",
        ("merge", files.checkpoint, files.minuend, "--data", files.folder / "nothing-known"),
        out,
        files.checkpoint,
        lambda _: "not run",
        pairs=1,
    )
    out.unlink()
    return row


def merge_large(files: Files) -> Row | Skipped:
    """The same into a checkpoint three to four times as large, once: its memory is what counts."""
    work = "merge, the same into float32 with moving averages"
    if files.large is None:
        return Skipped(work, "no room on the disk")
    out = files.folder / "merged-large.safetensors"
    row = measured(
        work, ("merge", files.large, files.minuend), out, files.large, lambda _: "not run", pairs=1
    )
    out.unlink()
    return row


def extract(files: Files) -> Row | Skipped:
    """Rank 16 from the merged checkpoint and its base."""
    work = "extract, rank 16 from two checkpoints"
    if not has_command("extract"):
        return Skipped(work, "this version has no `copier extract`")
    tuned = files.folder / "tuned.safetensors"
    (files.folder / "merged.safetensors").replace(tuned)
    out = files.folder / "extracted.safetensors"
    theirs = ("--model_org", files.checkpoint, "--model_tuned", tuned, "--dim", "16", *HALF)
    return measured(
        work,
        ("extract", tuned, files.checkpoint, "--rank", "16"),
        out,
        files.checkpoint,
        lambda ours: sd_scripts_ratio(ours, "extract_lora_from_models.py", theirs, out),
    )


WHOLE = (difference, combine, resize, merge, merge_first, merge_large, extract)
"""In this order: ``extract`` takes the file that ``merge`` leaves."""
