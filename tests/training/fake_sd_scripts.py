"""Stands in for sd-scripts' ``train_network.py``: says what it says, writes a LoRA, and fails on request.

The environment variable COPIER_FAKE holds words: ``hang``, ``crash``, ``oom``, ``nan``, ``mute-exit`` (exit
code 0 and no LoRA though there are pictures), ``ignore-term``,
``child`` (starts a process of its own that ignores TERM too), ``slow`` (a step takes 0.2 s), ``truncated``
(the LoRA is cut off). COPIER_FAKE_LORA is the file that it "trains". It needs the standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

WORDS = os.environ.get("COPIER_FAKE", "").split()
IGNORER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"


def setup_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    for name in ("pretrained_model_name_or_path", "dataset_config", "output_dir", "output_name"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("save_model_as", "sample_prompts", "network_module", "mixed_precision", "save_precision"):
        parser.add_argument(f"--{name}")
    for name in ("max_train_steps", "save_every_n_steps", "sample_every_n_steps", "network_dim"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--network_args", nargs="*")
    parser.add_argument("--sample_prompts_file")
    parser.add_argument("--network_train_unet_only", action="store_true")
    return parser


def bar(text: str, end: str = "") -> None:
    sys.stderr.write(f"\r{text}{end}")
    sys.stderr.flush()


def pictures(dataset: str) -> list[Path]:
    config = json.loads(Path(dataset).read_text(encoding="utf-8"))
    subsets = [subset for one in config["datasets"] for subset in one["subsets"]]
    found = []
    for subset in subsets:
        for path in sorted(Path(subset["image_dir"]).glob("*.png")):
            caption = path.with_suffix(subset["caption_extension"])
            assert not caption.exists() or caption.read_text(encoding="utf-8"), "empty caption file"
            found.append(path)
            # As cache_latents_to_disk does: beside the picture.
            path.with_suffix(".npz").write_bytes(b"latents")
    return found


def save(path: Path) -> None:
    """In two parts, with time between them, as a slow disk would."""
    print(f"\nsaving checkpoint: {path}")
    content = Path(os.environ["COPIER_FAKE_LORA"]).read_bytes()
    if "truncated" in WORDS:
        content = content[:-100]
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        time.sleep(0.05)
        file.write(content[len(content) // 2 :])


def draw(path: Path) -> None:
    """A PNG of one pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0\xff\0\0"))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))


def train(arguments: argparse.Namespace) -> None:
    out, name, steps = Path(arguments.output_dir), arguments.output_name, arguments.max_train_steps
    print("running training / 学習開始")
    bar(f"steps:   0%|          | 0/{steps} [00:00<?, ?it/s]")
    for step in range(1, steps + 1):
        time.sleep(0.2 if "slow" in WORDS else 0.01)
        if step == 2 and "hang" in WORDS:
            time.sleep(120)
        if step == 2 and "crash" in WORDS:
            raise ZeroDivisionError("division by zero")
        if step == 2 and "oom" in WORDS:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1024.00 MiB (GPU 0; 8.00 GiB total)")
        loss = "nan" if "nan" in WORDS else f"{0.5 / step:.3g}"
        state = f"steps: {100 * step // steps:3d}%|#         | {step}/{steps} [00:01<00:01, 24.74s/it"
        bar(f"{state}]")
        bar(f"{state}, avr_loss={loss}]")
        if arguments.save_every_n_steps and step % arguments.save_every_n_steps == 0:
            save(out / f"{name}-step{step:08d}.safetensors")
        if arguments.sample_every_n_steps and step % arguments.sample_every_n_steps == 0:
            # Nobody ended the line of the bar.
            sys.stderr.write("INFO generating sample images at step / サンプル画像生成 ステップ\n")
            draw(out / "sample" / f"{name}_{step:06d}_00_20260101000000_1.png")
    if "mute-exit" not in WORDS:
        save(out / f"{name}.safetensors")
    print("model saved.")


def main() -> None:
    if "ignore-term" in WORDS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    arguments, _ = setup_parser().parse_known_args()  # the real one has some 150 more
    if "child" in WORDS:
        # The folder is for the tests: they look for it in the table of processes.
        subprocess.Popen([sys.executable, "-S", "-c", IGNORER, arguments.output_dir])
    print("arguments", *sys.argv[1:])
    print("prepare tokenizer")
    if not pictures(arguments.dataset_config):
        print("No data found. Please verify arguments (train_data_dir must be the parent of folders)")
        return
    train(arguments)


if __name__ == "__main__":
    main()
