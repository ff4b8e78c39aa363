"""Keys and shapes of checkpoints of every family: the real structure of blocks, at any width and depth.

Each function gives {key: shape} of one part; a checkpoint is the union of parts. Written from the models'
own structure (their forward pass), not from the names that the code under test derives.
"""

from __future__ import annotations

from copier.checkpoint.header import Header, TensorInfo

Shapes = dict[str, tuple[int, ...]]
UNET = "model.diffusion_model."


def header(shapes, metadata=None, dtype="F16"):
    """A header with these keys; offsets are of no interest here."""
    tensors = {key: TensorInfo(dtype, tuple(shape), 0, 0) for key, shape in shapes.items()}
    return Header(tensors=tensors, metadata=metadata or {}, data_start=0, file_size=0)


def lora(shapes, rank=4, up="lora_up", down="lora_down", alpha=True):
    """A LoRA of two factors for each module, from {module: shape of its change}."""
    tensors = {}
    for name, (out, *rest) in shapes.items():
        tensors[f"{name}.{up}.weight"] = (out, rank, *([1] * len(rest[1:])))
        tensors[f"{name}.{down}.weight"] = (rank, *rest)
        if alpha:
            tensors[f"{name}.alpha"] = ()
    return tensors


def _module(name: str, *shape: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}


def _norm(name: str, width: int) -> Shapes:
    return _module(name, width)


def unet(
    widths=(32, 64, 96, 96),
    depths=(1, 1, 1, 0),
    context=24,
    *,
    linear=False,
    label=0,
    prefix=UNET,
    layers=2,
) -> Shapes:
    """LDM's U-Net; ``depths`` of the transformers by level, the last that is not 0 also in the middle."""
    keys: Shapes = {}
    embedded = 4 * widths[0]
    for number, read in ((0, widths[0]), (2, embedded)):
        keys |= _module(f"time_embed.{number}", embedded, read)
    if label:
        keys |= _module("label_emb.0.0", embedded, label) | _module("label_emb.0.2", embedded, embedded)
    keys |= _module("input_blocks.0.0", widths[0], 4, 3, 3)
    number, width, skips = 1, widths[0], [widths[0]]
    for level, out in enumerate(widths):
        for _ in range(layers):
            keys |= _residual(f"input_blocks.{number}.0", width, out, embedded)
            keys |= _transformer(f"input_blocks.{number}.1", out, depths[level], context, linear)
            number, width = number + 1, out
            skips.append(width)
        if level < len(widths) - 1:
            keys |= _module(f"input_blocks.{number}.0.op", width, width, 3, 3)
            number += 1
            skips.append(width)
    keys |= _residual("middle_block.0", width, width, embedded)
    keys |= _transformer("middle_block.1", width, [d for d in depths if d][-1], context, linear)
    keys |= _residual("middle_block.2", width, width, embedded)
    number = 0
    for level, out in reversed(list(enumerate(widths))):
        for layer in range(layers + 1):
            block = f"output_blocks.{number}"
            keys |= _residual(f"{block}.0", width + skips.pop(), out, embedded)
            keys |= _transformer(f"{block}.1", out, depths[level], context, linear)
            if layer == layers and level > 0:
                keys |= _module(f"{block}.{2 if depths[level] else 1}.conv", out, out, 3, 3)
            number, width = number + 1, out
    keys |= _norm("out.0", width) | _module("out.2", 4, width, 3, 3)
    return {prefix + key: shape for key, shape in keys.items()}


def _residual(name: str, read: int, out: int, embedded: int) -> Shapes:
    keys = _norm(f"{name}.in_layers.0", read) | _module(f"{name}.in_layers.2", out, read, 3, 3)
    keys |= _module(f"{name}.emb_layers.1", out, embedded)
    keys |= _norm(f"{name}.out_layers.0", out) | _module(f"{name}.out_layers.3", out, out, 3, 3)
    if read != out:
        keys |= _module(f"{name}.skip_connection", out, read, 1, 1)
    return keys


def _transformer(name: str, width: int, depth: int, context: int, linear: bool) -> Shapes:
    if not depth:
        return {}
    taps = () if linear else (1, 1)
    keys = _norm(f"{name}.norm", width) | _module(f"{name}.proj_in", width, width, *taps)
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for attention, read in (("attn1", width), ("attn2", context)):
            keys |= _module(f"{block}.{attention}.to_q", width, width, bias=False)
            keys |= _module(f"{block}.{attention}.to_k", width, read, bias=False)
            keys |= _module(f"{block}.{attention}.to_v", width, read, bias=False)
            keys |= _module(f"{block}.{attention}.to_out.0", width, width)
        keys |= _module(f"{block}.ff.net.0.proj", 8 * width, width)
        keys |= _module(f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            keys |= _norm(f"{block}.{norm}", width)
    return keys | _module(f"{name}.proj_out", width, width, *taps)


def clip(prefix: str, layers: int = 2, width: int = 24, *, projection: bool = False, tokens=50) -> Shapes:
    """transformers' text encoder."""
    text = f"{prefix}text_model."
    keys = {f"{text}embeddings.token_embedding.weight": (tokens, width)}
    keys |= {f"{text}embeddings.position_embedding.weight": (77, width)}
    for number in range(layers):
        layer = f"{text}encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            keys |= _module(f"{layer}.self_attn.{part}", width, width)
        keys |= _module(f"{layer}.mlp.fc1", 4 * width, width) | _module(f"{layer}.mlp.fc2", width, 4 * width)
        keys |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
    keys |= _norm(f"{text}final_layer_norm", width)
    return keys | (_module(f"{prefix}text_projection", width, width, bias=False) if projection else {})


def open_clip(prefix: str, layers: int = 2, width: int = 24, *, tokens=50) -> Shapes:
    """OpenCLIP's text encoder, with q, k and v in one weight."""
    keys: Shapes = {f"{prefix}positional_embedding": (77, width), f"{prefix}text_projection": (width, width)}
    keys |= {f"{prefix}logit_scale": (), f"{prefix}token_embedding.weight": (tokens, width)}
    for number in range(layers):
        layer = f"{prefix}transformer.resblocks.{number}"
        keys |= {
            f"{layer}.attn.in_proj_weight": (3 * width, width),
            f"{layer}.attn.in_proj_bias": (3 * width,),
        }
        keys |= _module(f"{layer}.attn.out_proj", width, width)
        keys |= _module(f"{layer}.mlp.c_fc", 4 * width, width)
        keys |= _module(f"{layer}.mlp.c_proj", width, 4 * width)
        keys |= _norm(f"{layer}.ln_1", width) | _norm(f"{layer}.ln_2", width)
    return keys | _norm(f"{prefix}ln_final", width)


def vae(widths=(32, 64, 64, 64), prefix="first_stage_model.") -> Shapes:
    """LDM's autoencoder: two residual blocks a level down, three up, attention in the middle."""
    first, last = widths[0], widths[-1]
    keys = _module("encoder.conv_in", first, 3, 3, 3) | _module("encoder.conv_out", 8, last, 3, 3)
    keys |= _module("decoder.conv_in", last, 4, 3, 3) | _module("decoder.conv_out", 3, first, 3, 3)
    keys |= _module("quant_conv", 8, 8, 1, 1) | _module("post_quant_conv", 4, 4, 1, 1)
    keys |= _norm("encoder.norm_out", last) | _norm("decoder.norm_out", first)
    for side in ("encoder", "decoder"):
        for block in ("block_1", "block_2"):
            keys |= _vae_residual(f"{side}.mid.{block}", last, last)
        keys |= _norm(f"{side}.mid.attn_1.norm", last)
        for part in ("q", "k", "v", "proj_out"):
            keys |= _module(f"{side}.mid.attn_1.{part}", last, last, 1, 1)
    width = first
    for level, out in enumerate(widths):
        for layer in range(2):
            keys |= _vae_residual(f"encoder.down.{level}.block.{layer}", width, out)
            width = out
        if level < len(widths) - 1:
            keys |= _module(f"encoder.down.{level}.downsample.conv", out, out, 3, 3)
    for level, out in reversed(list(enumerate(widths))):
        for layer in range(3):
            keys |= _vae_residual(f"decoder.up.{level}.block.{layer}", width, out)
            width = out
        if level:
            keys |= _module(f"decoder.up.{level}.upsample.conv", out, out, 3, 3)
    return {prefix + key: shape for key, shape in keys.items()}


def _vae_residual(name: str, read: int, out: int) -> Shapes:
    keys = _norm(f"{name}.norm1", read) | _module(f"{name}.conv1", out, read, 3, 3)
    keys |= _norm(f"{name}.norm2", out) | _module(f"{name}.conv2", out, out, 3, 3)
    return keys | (_module(f"{name}.nin_shortcut", out, read, 1, 1) if read != out else {})


def t5(prefix: str, layers: int = 2, width: int = 24) -> Shapes:
    """T5's encoder."""
    keys: Shapes = {f"{prefix}shared.weight": (50, width)}
    for number in range(layers):
        layer = f"{prefix}encoder.block.{number}.layer"
        for part in "qkvo":
            keys |= _module(f"{layer}.0.SelfAttention.{part}", width, width, bias=False)
        for part, out, read in (("wi_0", 64, width), ("wi_1", 64, width), ("wo", width, 64)):
            keys |= _module(f"{layer}.1.DenseReluDense.{part}", out, read, bias=False)
        keys |= {f"{layer}.{part}.layer_norm.weight": (width,) for part in (0, 1)}
    keys[f"{prefix}encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 4)
    return keys | {f"{prefix}encoder.final_layer_norm.weight": (width,)}


def flux(prefix=UNET, double=2, single=2, width=32, *, guidance=True) -> Shapes:
    """FLUX.1's transformer."""
    keys = _module("img_in", width, 64) | _module("txt_in", width, 40)
    for name, read in (("time_in", 16), ("vector_in", 20), *((("guidance_in", 16),) if guidance else ())):
        keys |= _module(f"{name}.in_layer", width, read) | _module(f"{name}.out_layer", width, width)
    for number in range(double):
        for stream in ("img", "txt"):
            block = f"double_blocks.{number}.{stream}"
            keys |= _module(f"{block}_mod.lin", 6 * width, width)
            keys |= _module(f"{block}_attn.qkv", 3 * width, width) | _module(
                f"{block}_attn.proj", width, width
            )
            keys |= {f"{block}_attn.norm.{norm}.scale": (8,) for norm in ("query_norm", "key_norm")}
            keys |= _module(f"{block}_mlp.0", 4 * width, width) | _module(f"{block}_mlp.2", width, 4 * width)
    for number in range(single):
        block = f"single_blocks.{number}"
        keys |= _module(f"{block}.linear1", 7 * width, width) | _module(f"{block}.linear2", width, 5 * width)
        keys |= {f"{block}.norm.{norm}.scale": (8,) for norm in ("query_norm", "key_norm")}
        keys |= _module(f"{block}.modulation.lin", 3 * width, width)
    keys |= _module("final_layer.linear", 64, width)
    keys |= _module("final_layer.adaLN_modulation.1", 2 * width, width)
    return {prefix + key: shape for key, shape in keys.items()}


def sd3(prefix=UNET, blocks=3, width=32, *, dual=1) -> Shapes:
    """SD3's transformer; the first ``dual`` blocks have a second attention, as in SD3.5 medium."""
    keys: Shapes = {"pos_embed": (1, 36, width)}
    keys |= _module("x_embedder.proj", width, 16, 2, 2) | _module("context_embedder", width, 40)
    for name, read in (("t_embedder", 16), ("y_embedder", 20)):
        keys |= _module(f"{name}.mlp.0", width, read) | _module(f"{name}.mlp.2", width, width)
    for number in range(blocks):
        for stream in ("context_block", "x_block"):
            block = f"joint_blocks.{number}.{stream}"
            last = stream == "context_block" and number == blocks - 1
            second = stream == "x_block" and number < dual
            keys |= _module(f"{block}.attn.qkv", 3 * width, width)
            modulations = 2 if last else 9 if second else 6
            keys |= _module(f"{block}.adaLN_modulation.1", modulations * width, width)
            if second:
                keys |= _module(f"{block}.attn2.qkv", 3 * width, width)
                keys |= _module(f"{block}.attn2.proj", width, width)
            if not last:
                keys |= _module(f"{block}.attn.proj", width, width)
                keys |= _module(f"{block}.mlp.fc1", 4 * width, width)
                keys |= _module(f"{block}.mlp.fc2", width, 4 * width)
    keys |= _module("final_layer.linear", 64, width)
    keys |= _module("final_layer.adaLN_modulation.1", 2 * width, width)
    return {prefix + key: shape for key, shape in keys.items()}


def sd1_file(**unet_options) -> Shapes:
    """A whole SD 1.x file, without its autoencoder."""
    return unet(**unet_options) | clip("cond_stage_model.transformer.")


def sd2_file(layers=24) -> Shapes:
    """A whole SD 2.x file, without its autoencoder; it has 24 layers of text, of which 23 are used."""
    return unet(linear=True) | open_clip("cond_stage_model.model.", layers)


def sdxl_file() -> Shapes:
    """A whole SDXL file, without its autoencoder; the transformers are 2 and 10 deep as in the real one."""
    return (
        unet((32, 64, 96), (0, 2, 10), linear=True, label=28)
        | clip("conditioner.embedders.0.transformer.")
        | open_clip("conditioner.embedders.1.model.")
    )


def flux_file() -> Shapes:
    """A FLUX file with its text encoders."""
    return flux() | clip("text_encoders.clip_l.transformer.") | t5("text_encoders.t5xxl.transformer.")


def sd3_file() -> Shapes:
    """An SD3.5 file with its three text encoders."""
    encoders = clip("text_encoders.clip_l.transformer.", projection=True)
    encoders |= clip("text_encoders.clip_g.transformer.", projection=True)
    return sd3() | encoders | t5("text_encoders.t5xxl.transformer.")
