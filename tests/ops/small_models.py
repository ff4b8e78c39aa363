"""What is left of a checkpoint of each family: a few small weights, and the LoRA modules that change them."""

from __future__ import annotations

from dataclasses import dataclass

WIDTH, CROSS = 6, 8


@dataclass(frozen=True)
class Module:
    """A module of a LoRA: its name, the checkpoint's key, the shape of its change, and its first row."""

    name: str
    key: str
    shape: tuple[int, ...]
    row: int = 0


@dataclass(frozen=True)
class Model:
    """What is left of a checkpoint of one family, and the modules of LoRAs for it, by the style of names."""

    keys: dict[str, list[int]]
    kohya: tuple[Module, ...]
    dotted: tuple[Module, ...]


LDM = "model.diffusion_model."
MIDDLE = f"{LDM}middle_block.1.transformer_blocks.0."
PROJECTION = f"{LDM}middle_block.1.proj_in.weight"
KERNEL = f"{LDM}middle_block.0.in_layers.2.weight"
CLIP = "text_model.encoder.layers.0.self_attn.q_proj"
OPEN_CLIP = "transformer.resblocks.0.attn.in_proj_weight"
SD1_TEXT, SD2_TEXT = f"cond_stage_model.transformer.{CLIP}.weight", f"cond_stage_model.model.{OPEN_CLIP}"
XL_TEXT = [
    f"conditioner.embedders.{part}" for part in (f"0.transformer.{CLIP}.weight", f"1.model.{OPEN_CLIP}")
]
SQUARE, CROSSED, TEXT_SQUARE = (WIDTH, WIDTH), (WIDTH, CROSS), (CROSS, CROSS)


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _unet_model(
    texts: dict[str, list[int]],
    kohya: tuple[Module, ...],
    dotted: tuple[Module, ...],
    taps: tuple[int, ...] = (),
) -> Model:
    keys = {
        f"{LDM}input_blocks.0.0.weight": [4, 4, 3, 3],
        f"{MIDDLE}attn1.to_q.weight": [*SQUARE],
        f"{MIDDLE}attn2.to_k.weight": [*CROSSED],
        PROJECTION: [*SQUARE, *taps],
        KERNEL: [*SQUARE, 3, 3],
        **texts,
        "first_stage_model.quant_conv.weight": [4, 4, 1, 1],
    }
    attention, block = "unet.mid_block.attentions.0.", "transformer_blocks.0."
    parts = (("attn1.to_q", SQUARE), ("attn2.to_k", CROSSED))
    unet = [Module(f"{attention}{block}{part}", f"{MIDDLE}{part}.weight", shape) for part, shape in parts]
    unet.append(Module(f"{attention}proj_in", PROJECTION, (*SQUARE, *taps)))
    flat = [Module("lora_" + _flat(one.name), one.key, one.shape) for one in unet]
    conv = Module("lora_unet_mid_block_resnets_0_conv1", KERNEL, (*SQUARE, 3, 3))
    return Model(keys, (*flat, conv, *kohya), (*unet, *dotted))


def _transformer(prefix: str) -> Model:
    double, single = f"{prefix}double_blocks.0.img_attn.qkv", f"{prefix}single_blocks.0.linear1"
    keys = {f"{double}.weight": [3 * WIDTH, WIDTH], f"{single}.weight": [7 * WIDTH, WIDTH]}
    keys[f"{prefix}final_layer.linear.weight"] = [4, WIDTH]
    kohya = tuple(
        Module(f"lora_unet_{_flat(key.removeprefix(prefix))}", f"{key}.weight", (rows * WIDTH, WIDTH))
        for key, rows in ((double, 3), (single, 7))
    )
    parts = (
        ("transformer_blocks.0.attn.to_k", double, WIDTH, WIDTH),
        ("transformer_blocks.0.attn.to_v", double, WIDTH, 2 * WIDTH),
        ("single_transformer_blocks.0.proj_mlp", single, 4 * WIDTH, 3 * WIDTH),
    )
    dotted = tuple(
        Module(f"transformer.{path}", f"{key}.weight", (out, WIDTH), row) for path, key, out, row in parts
    )
    return Model(keys, kohya, dotted)


def _joint() -> Model:
    keys = {
        f"{LDM}joint_blocks.0.{one}_block.attn.qkv.weight": [3 * WIDTH, WIDTH] for one in ("x", "context")
    }
    image, text = keys
    kohya = Module("lora_unet_joint_blocks_0_context_block_attn_qkv", text, (3 * WIDTH, WIDTH))
    names = (("to_q", image, 0), ("add_v_proj", text, 2 * WIDTH))
    dotted = (
        Module(f"transformer.transformer_blocks.0.attn.{part}", key, SQUARE, row) for part, key, row in names
    )
    return Model(keys, (kohya,), tuple(dotted))


MODELS = {
    "sd1": _unet_model(
        {SD1_TEXT: [*TEXT_SQUARE]},
        (Module(f"lora_te_{_flat(CLIP)}", SD1_TEXT, TEXT_SQUARE),),
        (Module(f"text_encoder.{CLIP}", SD1_TEXT, TEXT_SQUARE),),
        (1, 1),
    ),
    "sd2": _unet_model(
        {SD2_TEXT: [3 * CROSS, CROSS]},
        (Module(f"lora_te_{_flat(CLIP)}", SD2_TEXT, TEXT_SQUARE),),
        (Module(f"text_encoder.{CLIP.replace('q_proj', 'v_proj')}", SD2_TEXT, TEXT_SQUARE, 2 * CROSS),),
    ),
    "sdxl": _unet_model(
        {XL_TEXT[0]: [*TEXT_SQUARE], XL_TEXT[1]: [3 * CROSS, CROSS]},
        (
            Module(f"lora_te1_{_flat(CLIP)}", XL_TEXT[0], TEXT_SQUARE),
            Module(f"lora_te2_{_flat(CLIP.replace('q_proj', 'k_proj'))}", XL_TEXT[1], TEXT_SQUARE, CROSS),
        ),
        (Module(f"text_encoder_2.{CLIP}", XL_TEXT[1], TEXT_SQUARE),),
    ),
    "sd3": _joint(),
    "flux": _transformer(LDM),
    "flux, bare": _transformer(""),
}
