"""CLIP's vocabulary, taken from the installed ``open_clip_torch`` wheel, and its tokenizer.

The wheel is installed without its dependencies, for one data file: it is located, never imported.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from copier.errors import CopierError
from copier.temporary import replace_file

VOCABULARY = 49408
START = "<|startoftext|>"
END = "<|endoftext|>"
POSITIONS = 77
REQUIREMENT = "open_clip_torch==3.3.0"
_MERGES = 49152 - 256 - 2
_DATA_FILE = "bpe_simple_vocab_16e6.txt.gz"


def find_vocabulary() -> Path:
    """The wheel's file of byte-pair merges. Raises ``CopierError`` where the wheel is missing."""
    spec = importlib.util.find_spec("open_clip")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / _DATA_FILE
        if path.is_file():
            return path
    raise CopierError(
        f"CLIP's vocabulary ({_DATA_FILE}) is not installed; get it with: "
        f"pip install --no-deps {REQUIREMENT}"
    )


def build_vocabulary(text: str) -> tuple[dict[str, int], list[str]]:
    """Ids by token, and the merges in order, from the unpacked text of the wheel's file.

    256 bytes, the same at the end of a word, one token a merge, and the start and end marks, as
    OpenAI's CLIP numbers them: 49,408 tokens.
    """
    merges = text.split("\n")[1 : _MERGES + 1]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += ["".join(merge.split()) for merge in merges]
    tokens += [START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != VOCABULARY:
        raise CopierError(
            f"CLIP's vocabulary has {len(vocabulary)} tokens instead of {VOCABULARY}: reinstall it "
            f"with pip install --force-reinstall --no-deps {REQUIREMENT}"
        )
    return vocabulary, merges


def write_tokenizer(folder: Path, *, padding: str = END) -> Path:
    """Write what transformers and sd-scripts load as CLIP's tokenizer into ``folder``; return it.

    ``padding`` is the token that fills up a short text. Each file appears whole or not at all; files that
    are there already are kept.
    """
    names = ("vocab.json", "merges.txt", "tokenizer_config.json")
    if all((folder / name).is_file() for name in names):
        return folder
    text = gzip.decompress(find_vocabulary().read_bytes()).decode("utf-8")
    vocabulary, merges = build_vocabulary(text)
    contents: Mapping[str, str] = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(("#version: 0.2", *merges)) + "\n",
        "tokenizer_config.json": json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": POSITIONS,
                "bos_token": START,
                "eos_token": END,
                "unk_token": END,
                "pad_token": padding,
                "add_prefix_space": False,
                "errors": "replace",
            }
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        replace_file(folder / name, contents[name].encode())
    return folder


def load_tokenizer(folder: Path | None = None) -> Any:
    """transformers' ``CLIPTokenizer`` with SD 1.x's padding (the end mark, id 49407).

    ``folder`` keeps its files for the next time; without one they are made anew and deleted.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="copier-tokenizer-") as temporary:
            return load_tokenizer(Path(temporary))
    write_tokenizer(folder)
    return CLIPTokenizer(
        vocab_file=str(folder / "vocab.json"),
        merges_file=str(folder / "merges.txt"),
        pad_token=END,
        model_max_length=POSITIONS,
    )
