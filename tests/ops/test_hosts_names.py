"""Whatever is written has names that hosts know: of every family, operation and layout of the inputs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from copier.checkpoint.header import read_header
from copier.checkpoint.targets import written_names
from copier.checkpoint.writer import write_tensors
from copier.ops.combine import combine, difference
from copier.ops.extract import extract
from copier.ops.resize import resize
from tests.checkpoint import narrow_models as narrow
from tests.ops.small_models import MODELS

SD15 = json.loads(
    (Path(__file__).parents[1] / "checkpoint" / "data" / "sd15.json").read_text(encoding="utf-8")
)
DIFFUSERS = {name for name in (*SD15["linear"], *SD15["locon_extra"]) if name.startswith("lora_unet_")}
"""The names that hosts have for the U-Net of SD1 and SD2."""
CLIP_PARTS = "self_attn_(q|k|v|out)_proj|mlp_fc[12]"
T5_PARTS = "0_SelfAttention_[qkvo]|1_DenseReluDense_(wi_0|wi_1|wo)"
FILES = {
    "sd1": narrow.sd1_file(),
    "sd2": narrow.sd2_file(),
    "sdxl": narrow.sdxl_file(),
    "sd3": narrow.sd3_file(),
    "flux": narrow.flux_file(),
    "flux, bare": narrow.flux(prefix=""),
}
TEXT = {"sd1": "", "sd2": "", "sdxl": "[12]", "sd3": "[12]", "flux": "1"}
"""The numbers that hosts put after ``lora_te``, by family, of the encoders that are CLIP's."""
MAKERS = ("sdxl", "sd3", "flux")
"""Hosts know the makers' paths of these (and of SDXL diffusers', with which SD1 and SD2 are trained)."""
DOTTED = re.compile(
    r"transformer\.(transformer_blocks|single_transformer_blocks)\.\d+\."
    r"(attn2?\.(to_q|to_k|to_v|to_out\.0|add_[qkv]_proj|to_add_out)|proj_(mlp|out)|ff(_context)?\.net\.(0\.proj|2)"
    r"|norm(1|1_context)?\.linear)"
)


def known_to_hosts(name: str, family: str, keys: set[str]) -> bool:
    """As the hosts' tables have it: ComfyUI's ``model_lora_keys_unet`` and ``_clip`` (Forge), A1111's."""
    if re.fullmatch(rf"lora_te{TEXT[family]}_text_model_encoder_layers_\d+_({CLIP_PARTS})", name):
        return True
    if family in ("sd3", "flux") and re.fullmatch(rf"lora_te3_encoder_block_\d+_layer_({T5_PARTS})", name):
        return True
    if family in ("sd1", "sd2"):
        return name in DIFFUSERS
    paths = {key.removeprefix(narrow.UNET).removesuffix(".weight").replace(".", "_") for key in keys}
    if name.removeprefix("lora_unet_") in paths and name.startswith("lora_unet_"):
        return True
    return name in DIFFUSERS if family == "sdxl" else DOTTED.fullmatch(name) is not None


@pytest.mark.parametrize("family", FILES)
def test_every_name_that_a_checkpoint_gives_is_known(family: str) -> None:
    shapes = FILES[family]
    names = written_names(narrow.header(shapes))
    assert len(names) > 20
    assert not known_to_hosts("lora_unet_nowhere", family.split(",")[0], set(shapes))
    assert [name for name in names if not known_to_hosts(name, family.split(",")[0], set(shapes))] == []


def lora_at(path: Path, family: str, style: str) -> None:
    tensors = {}
    for module in getattr(MODELS[family], style):
        up, down = ("lora_B", "lora_A") if style == "dotted" else ("lora_up", "lora_down")
        out, *rest = module.shape
        tensors[f"{module.name}.{up}.weight"] = torch.randn(out, 2, *[1] * len(rest[1:]))
        tensors[f"{module.name}.{down}.weight"] = torch.randn(2, *rest)
    write_tensors(path, tensors)


@pytest.mark.parametrize("style", ["kohya", "dotted"])
@pytest.mark.parametrize("family", MODELS)
def test_every_operation_writes_known_names_and_suffixes_only(
    tmp_path: Path, family: str, style: str
) -> None:
    a, b, base, tuned = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "base", "tuned"))
    lora_at(a, family, style)
    lora_at(b, family, style)
    for path in (base, tuned):
        write_tensors(path, {key: torch.randn(shape) for key, shape in MODELS[family].keys.items()})
    (tmp_path / "out").mkdir()
    outs = [tmp_path / "out" / f"{number}.safetensors" for number in range(4)]
    difference(a, b, outs[0])
    combine([(a, 0.5), (b, 1.0)], outs[1], exact=True)
    resize(a, outs[2], rank=1)
    extract(tuned, base, outs[3], rank=1, conv_rank=1)
    for out in outs:
        names = {}
        for key in read_header(out).tensors:
            name, suffix = re.fullmatch(r"(.+?)(\.(?:alpha|lora_(?:up|down|A|B)\.weight))", key).groups()
            names.setdefault(name, set()).add(suffix)
        kohya = {".alpha", ".lora_up.weight", ".lora_down.weight"}
        assert all(
            suffixes == ({".lora_A.weight", ".lora_B.weight"} if "." in name else kohya)
            for name, suffixes in names.items()
        )
        family_alone, keys = family.split(",")[0], set(MODELS[family].keys)
        assert len(names) >= 1
        assert [name for name in names if not known_to_hosts(name, family_alone, keys)] == []
