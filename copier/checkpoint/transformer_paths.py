"""diffusers' paths of the modules of FLUX's and SD3's transformers, from the makers' own paths.

Both makers fuse the projections of an attention into one weight, of which diffusers' modules are rows.
Which rows follows from the weight's own shape. Sources of the pairs: the conversion scripts
``convert_flux_to_diffusers.py`` and ``convert_sd3_to_diffusers.py`` of huggingface/diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from copier.checkpoint.rows import Rows, stacked, thirds

_FLUX_STREAMS = (
    # the maker's prefix; what diffusers calls its q, k, v, its projection, feed-forward, modulation
    ("img_", ("to_q", "to_k", "to_v"), "to_out.0", "ff", "norm1"),
    ("txt_", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context", "norm1_context"),
)
_DOUBLE = {
    native: paths
    for stream, qkv, out, feed_forward, norm in _FLUX_STREAMS
    for native, paths in (
        (f"{stream}attn.qkv", tuple(f"attn.{part}" for part in qkv)),
        (f"{stream}attn.proj", (f"attn.{out}",)),
        (f"{stream}mlp.0", (f"{feed_forward}.net.0.proj",)),
        (f"{stream}mlp.2", (f"{feed_forward}.net.2",)),
        (f"{stream}mod.lin", (f"{norm}.linear",)),
    )
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
_JOINT = {
    "x_block.attn.qkv": _DOUBLE["img_attn.qkv"],
    "x_block.attn.proj": _DOUBLE["img_attn.proj"],
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": _DOUBLE["img_mlp.0"],
    "x_block.mlp.fc2": _DOUBLE["img_mlp.2"],
    "x_block.adaLN_modulation.1": _DOUBLE["img_mod.lin"],
    "context_block.attn.qkv": _DOUBLE["txt_attn.qkv"],
    "context_block.attn.proj": _DOUBLE["txt_attn.proj"],
    "context_block.mlp.fc1": _DOUBLE["txt_mlp.0"],
    "context_block.mlp.fc2": _DOUBLE["txt_mlp.2"],
    "context_block.adaLN_modulation.1": _DOUBLE["txt_mod.lin"],
}
_BLOCKS = {
    "double_blocks": ("transformer_blocks", _DOUBLE),
    "single_blocks": ("single_transformer_blocks", _SINGLE),
    "joint_blocks": ("transformer_blocks", _JOINT),
}
# Not final_layer.adaLN_modulation.1: diffusers' norm_out.linear has its halves (shift, scale) the other
# way round, so that no one range of rows is the same; a LoRA with that module is refused by name.
_ENDS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}


def diffusers_transformer_paths(
    native: Mapping[str, Sequence[int]],
) -> Mapping[str, tuple[tuple[str, Rows | None], ...]]:
    """The maker's path -> diffusers' paths of the same weight, each with its rows (None: all).

    ``native`` maps the paths of the modules to the shapes of their weights, (out, in).
    """
    found: dict[str, tuple[tuple[str, Rows | None], ...]] = {}
    for path, shape in native.items():
        if path in _ENDS:
            found[path] = ((_ENDS[path], None),)
            continue
        kind, _, rest = path.partition(".")
        number, _, inside = rest.partition(".")
        block, table = _BLOCKS.get(kind, ("", {}))
        if inside in table and not _is_swapped(native, kind, number, inside):
            ours = [f"{block}.{number}.{part}" for part in table[inside]]
            found[path] = tuple(zip(ours, _rows(shape, len(ours)), strict=False))
    return found


def _is_swapped(native: Mapping[str, Sequence[int]], kind: str, number: str, inside: str) -> bool:
    """Is this the modulation of SD3's last context block, whose halves diffusers swaps as in norm_out?

    That block computes keys and values only: it is the one without a projection after its attention.
    """
    last = f"{kind}.{number}.context_block.attn.proj" not in native
    return inside == "context_block.adaLN_modulation.1" and last


def _rows(shape: Sequence[int], count: int) -> tuple[Rows | None, ...]:
    """The rows of each of ``count`` modules that are fused into one weight; () if it is no such weight.

    In FLUX's linear1 q, k and v are each as high as the input is wide (the heads together have the
    model's width), and what is left is the first layer of the feed-forward network.
    """
    if count == 1:
        return (None,)
    height, width = shape[0], shape[1]
    return thirds(height) if count == 3 else stacked(height, [width, width, width, height - 3 * width])
