"""Stands in for sd-scripts' ``tag_images_by_wd14_tagger.py``: says what it says, writes what it writes.

A picture's tags are the colours of its corners and its mode. The environment variable COPIER_FAKE holds
words: ``hang``, ``crash``, ``mute-exit`` (exit code 0 and no answer), ``less`` (the last picture has no
tags), ``half`` (a download that breaks off). A download writes the files of COPIER_FAKE_MODEL. Like the real
script it ends with an error at a character that it knows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from PIL import Image

WORDS = os.environ.get("COPIER_FAKE", "").split()
NAMES = {(255, 0, 0): "red", (0, 0, 255): "blue", (255, 255, 255): "white"}


def setup_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("train_data_dir")
    parser.add_argument("--onnx", action="store_true", required=True)
    for name in ("repo_id", "model_dir", "output_path", "caption_separator"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("thresh", "character_threshold"):
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("--batch_size", type=int, default=1)
    return parser


def model_at(arguments: argparse.Namespace) -> Path:
    place = Path(arguments.model_dir) / arguments.repo_id.replace("/", "_")
    if place.exists():
        print("using existing wd14 tagger model")
        return place
    print(f"downloading wd14 tagger model from hf_hub. id: {arguments.repo_id}")
    if os.environ["HF_HUB_OFFLINE"] == "1":
        raise ValueError("huggingface_hub.errors.OfflineModeIsEnabled")
    place.mkdir(parents=True)
    for name in ("selected_tags.csv", "model.onnx"):
        if name == "model.onnx" and "half" in WORDS:
            raise ValueError("requests.exceptions.ConnectionError: the network has gone")
        sys.stderr.write(f"\r{name}: 100%|##########| 480/480 [00:00<00:00, 1.2MB/s]\n")
        shutil.copy(Path(os.environ["COPIER_FAKE_MODEL"]) / name, place)
    return place


def tags_of(path: Path) -> list[str]:
    with Image.open(path) as image:
        corners = {"top_left": (0, 0), "bottom_right": (image.width - 1, image.height - 1)}
        found = [f"{NAMES[image.getpixel(at)]}_{corner}" for corner, at in corners.items()]
        return ["^_^", *found, f"mode_{image.mode}"]


def main() -> None:
    arguments = setup_parser().parse_args()
    model = model_at(arguments)
    print("Running wd14 tagger with onnx")
    print(f"loading onnx model: {model / 'model.onnx'}")
    assert (model / "model.onnx").is_file() and (model / "selected_tags.csv").is_file()
    if arguments.character_threshold <= 1:
        raise UnboundLocalError("cannot access local variable 'character_tags'")
    pictures = sorted(Path(arguments.train_data_dir).glob("*.png"))
    print(f"found {len(pictures)} images.")
    answer = {}
    for number, path in enumerate(pictures):
        state = f"{100 * number // len(pictures):3d}%|#         | {number}/{len(pictures)}"
        sys.stderr.write(f"\r{state} [00:00<00:01,  1.50it/s]")
        sys.stderr.flush()
        if "hang" in WORDS:
            time.sleep(120)
        if "crash" in WORDS:
            raise ZeroDivisionError("division by zero")
        if not ("less" in WORDS and number == len(pictures) - 1):
            tags = arguments.caption_separator.join(tags_of(path) if arguments.thresh < 0.9 else [])
            answer[str(path)] = {"tags": tags, "image_size": [1, 1]}
    sys.stderr.write(f"\r100%|##########| {len(pictures)}/{len(pictures)} [00:00<00:00,  1.50it/s]\n")
    if "mute-exit" not in WORDS:
        Path(arguments.output_path).write_text(json.dumps(answer, ensure_ascii=False), encoding="utf-8")
    print("done!")


if __name__ == "__main__":
    main()
