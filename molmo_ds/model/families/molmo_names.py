"""Names of the tensors of a released Molmo or Molmo2 and of their checkpoints; exported folders carry this file.

Sources: allenai/molmo at 793fa38, olmo/model.py; allenai/molmo2 at f3cb108; the released folders.
D width, I half of the SwiGLU (or one expert), E experts.
"""

from collections.abc import Collection
from dataclasses import replace

import torch

from molmo_ds.architecture import SCORER, MolmoConfig, TextConfig, VisionConfig
from molmo_ds.model.families.table import (
    SAME,
    Form,
    Rule,
    Table,
    affine,
    alike,
    experts,
    head,
    norms,
    pairs,
    rows,
)

PREFIXES = {"olmoe": ("attn.", "mlp."), "molmo2": ("self_attn.", "mlp.")}  # of parts of a block


def stacked_gate_up(i: int, d: int) -> Form:
    """The reference's w1 (gate) and v1 (up), each [E * I, D] <-> [E, 2 I, D]."""
    to_ours = lambda t: [torch.cat([w.reshape(-1, i, d) for w in t], 1)]  # noqa: E731
    return Form(
        to_ours,
        lambda t: [half.reshape(-1, d) for half in t[0].chunk(2, 1)],
        lambda read, _, first, last: to_ours([read(n, first * i, last * i) for n in range(2)])[0],
    )


def stacked_down(i: int, d: int) -> Form:
    """The reference's w2 [E * I, D], transposed per expert <-> [E, D, I]."""
    return Form(
        lambda t: [t[0].reshape(-1, i, d).transpose(1, 2).contiguous()],
        lambda t: [t[0].transpose(1, 2).reshape(-1, d)],
        lambda read, _, first, last: read(0, first * i, last * i).reshape(-1, i, d).transpose(1, 2),
    )


def reference(
    config: MolmoConfig, block: str | None = None, lm_head: str = "transformer.ff_out"
) -> Table:
    """Keys of the reference's own checkpoints.

    Args:
        block: its `block_type`: sequential (fused q|k|v and up|gate), llama (separate) or moe; None takes moe for
            experts and sequential for the rest. "olmoe" spells blocks OLMo's way, as the released MolmoE does, and
            "molmo2" as released Molmo2s do.
        lm_head: name of the head.
    """
    text = config.text
    block = block or ("moe" if text.num_experts else "sequential")
    attention, mlp = PREFIXES.get(block, ("", ""))
    of_norms = (attention, mlp) if block == "olmoe" else ("", "")
    table = _vision(config.vision) + _connector(config) + _scorer(config)
    table += alike("embed.", "transformer.wte.", ["embedding", "new_embedding"])
    for i in range(text.num_hidden_layers):
        ours = f"layers.{i}."
        theirs = f"transformer.blocks.{i}."
        table += _attention(
            text, f"{ours}self_attn.", f"{theirs}{attention}", fused=block != "llama"
        )
        table += pairs(
            ours, theirs, norms(text, f"{of_norms[0]}attn_norm", f"{of_norms[1]}ff_norm")
        )
        table += _mlp(text, f"{ours}mlp.", f"{theirs}{mlp}", block)
    return table + head(text, "transformer.ln_f", lm_head)


def released(config: MolmoConfig, lm_head: str = "lm_head") -> Table:
    """Keys of the released Hugging Face folders: the reference's after `model.`, with blocks of their own spelling.

    Args:
        lm_head: MolmoE only; `transformer.ff_out` is the other spelling of the head that readers should try.
    """
    if config.family == "molmo2":
        return _after_model(reference(config, "molmo2", "lm_head"))
    if config.text.num_experts:
        return _after_model(reference(config, "olmoe", lm_head))
    return _after_model(reference(config))


def detect(config: MolmoConfig, keys: Collection[str]) -> Table:
    """The table, of all spellings of the reference and of the released folders, that misses fewest of `keys`."""
    tables = [released(config), reference(config)]
    if config.text.num_experts:
        tables += [released(config, "transformer.ff_out"), _after_model(reference(config))]
    else:
        tables += [reference(config, "llama")]
    keys = set(keys)
    return min(
        tables, key=lambda table: sum(key not in keys for rule in table for key in rule.theirs)
    )


def _after_model(table: Table) -> Table:
    moved = [
        tuple(key if key.startswith("lm_head") else f"model.{key}" for key in rule.theirs)
        for rule in table
    ]
    return [replace(rule, theirs=theirs) for rule, theirs in zip(table, moved)]


def _attention(text: TextConfig, ours: str, theirs: str, fused: bool) -> Table:
    size = text.head_width
    queries = text.num_attention_heads * size
    keys = text.num_key_value_heads * size
    table = pairs(ours, theirs, {"o_proj.weight": "attn_out.weight"})
    if text.qk_norm and text.norm_type == "rms":  # the other has no weights
        table += alike(ours, theirs, ["q_norm.weight", "k_norm.weight"])
    for part in ("weight", "bias") if text.attention_bias else ("weight",):
        names = [f"{letter}_proj.{part}" for letter in "qkv"]
        if fused:
            whole = tuple(ours + name for name in names)
            table.append(Rule(whole, (f"{theirs}att_proj.{part}",), rows(queries, keys, keys)))
        else:
            table += alike(ours, theirs, names)
    return table


def _mlp(text: TextConfig, ours: str, theirs: str, block: str) -> Table:
    if block == "olmoe":
        return experts(text, ours, theirs)
    if block == "moe":
        return _stacked_experts(text, ours, f"{theirs}ffn.")
    table = pairs(ours, theirs, {"down_proj.weight": "ff_out.weight"})
    gate = f"{ours}gate_proj.weight"
    up = f"{ours}up_proj.weight"
    if block == "llama":
        return [
            *table,
            Rule((gate,), (f"{theirs}ff_proj1.weight",), SAME),
            Rule((up,), (f"{theirs}ff_proj2.weight",), SAME),
        ]
    half = text.intermediate_size  # up comes first, unlike in most fusions
    return [*table, Rule((up, gate), (f"{theirs}ff_proj.weight",), rows(half, half))]


def _stacked_experts(text: TextConfig, ours: str, theirs: str) -> Table:
    i = text.intermediate_size
    d = text.hidden_size
    mlp = f"{theirs}experts.mlp."
    return [
        Rule((f"{ours}gate.weight",), (f"{theirs}router.layer.weight",), SAME),
        Rule((f"{ours}experts.gate_up_proj",), (f"{mlp}w1", f"{mlp}v1"), stacked_gate_up(i, d)),
        Rule((f"{ours}experts.down_proj",), (f"{mlp}w2",), stacked_down(i, d)),
    ]


def _vision(vision: VisionConfig) -> Table:
    ours = "vision.embeddings."
    theirs = "vision_backbone.image_vit."
    names = {
        "patch_embedding.weight": "patch_embedding.weight",
        "position_embedding": "positional_embedding",
    }
    if vision.class_tokens:
        names["class_embedding"] = "class_embedding"
    if vision.model_type != "clip":
        names["patch_embedding.bias"] = "patch_embedding.bias"
    table = pairs(ours, theirs, names)
    if vision.model_type == "clip":
        table += affine(ours, theirs, {"pre_layernorm": "pre_ln"})
    block = {
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.out_proj": "attention.wo",
        "mlp.fc1": "feed_forward.w1",
        "mlp.fc2": "feed_forward.w2",
        "layer_norm1": "attention_norm",
        "layer_norm2": "ffn_norm",
    }
    for i in range(vision.num_hidden_layers):
        ours = f"vision.layers.{i}."
        theirs = f"vision_backbone.image_vit.transformer.resblocks.{i}."
        table += affine(ours, theirs, block)
        if vision.model_type == "dinov2":
            table += pairs(ours, theirs, {"layer_scale1": "lambda1", "layer_scale2": "lambda2"})
    return table


def _scorer(config: MolmoConfig) -> Table:
    """HeMolmo's."""
    selection = config.selection
    if selection is None:
        return []
    table = _scores("scorer.prior.", "patch_importance_ln.")
    if selection.scorer == "linear":
        table += pairs("scorer.low.", "importance_ln.", {"weight": "weight"})
    elif selection.scorer == "mlp":
        table += _scores("scorer.low.", "importance_ln.")
    if selection.norm:
        table += pairs("scorer.prior_norm.", "patch_importance_norm.", {"weight": "weight"})
        if selection.scorer != "prior":
            table += pairs("scorer.low_norm.", "importance_norm.", {"weight": "weight"})
    if selection.vector_query != "none":
        table += affine("scorer.", "", {"query": "image_query_ln"})
    return table


def _scores(ours: str, theirs: str) -> Table:
    halves = (f"{ours}up_proj.weight", f"{ours}gate_proj.weight")
    table = [Rule(halves, (f"{theirs}w1.weight",), rows(SCORER, SCORER))]
    return table + affine(ours, theirs, {"down_proj": "w2"})


def _connector(config: MolmoConfig) -> Table:
    connector = config.connector
    table = []
    if connector.padding_embed != "none":
        table += alike("connector.", "vision_backbone.", ["pad_embed"])
    if connector.pooling != "stack":
        names = {"q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "out_proj": "wo"}
        table += affine("connector.pooling.", "vision_backbone.image_pooling_2d.", names)
    names = {
        "gate_proj.weight": "w1.weight",
        "up_proj.weight": "w3.weight",
        "down_proj.weight": "w2.weight",
    }
    if connector.projector == "linear":
        names = {"weight": "weight"}
    return table + pairs("connector.projector.", "vision_backbone.image_projector.", names)
