"""Rename tables: what each tensor of a released Molmo, the reference, or a backbone of transformers is called here.

A table is a list of rules. A rule says which tensors of ours hold the same numbers as which of theirs, and carries two
inverse functions where the layout differs (q, k and v fused into one matrix, experts stacked, ...). Tables are written
out for one configuration, so that "missing" and "left over" are set differences, and a rule moves at most the MLP of
one layer, so that a 72B model is converted tensor by tensor. Facts: allenai/molmo at 793fa38, transformers 5.23.

D width, I half of the SwiGLU (or one expert), E experts, p patch size.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from molmo_ds.config import MolmoConfig, TextConfig, VisionConfig


@dataclass(frozen=True)
class Form:
    """Two inverse functions between lists of tensors; `to_ours` may return views.

    `rows(read, index, first, last)` makes rows [first, last) of `to_ours(...)[index]` of no more of theirs than they
    need, where `read(number, first, last)` gives rows of their tensor `number`, by default all. None: theirs are small.
    """

    to_ours: Callable[[list[Tensor]], list[Tensor]]
    to_theirs: Callable[[list[Tensor]], list[Tensor]]
    rows: Callable[[Callable[..., Tensor], int, int, int], Tensor] | None = None


@dataclass(frozen=True)
class Rule:
    """`ours` and `theirs` hold the same numbers."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    form: Form


Table = list[Rule]
SAME = Form(lambda t: t, lambda t: t, lambda read, _, first, last: read(0, first, last))
FIRST = Form(lambda t: [t[0].reshape(-1, t[0].shape[-1])], lambda t: [t[0][None]])  # [1, n, D] <-> [n, D]
CLASS = Form(lambda t: [t[0].reshape(-1)], lambda t: [t[0][None, None]])  # [1, 1, D] <-> [D]


def rows(*sizes: int) -> Form:
    """Theirs is one matrix (or bias) whose rows are ours, one after the other."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return Form(
        lambda t: list(t[0].split(list(sizes))),
        lambda t: [torch.cat(t)],
        lambda read, index, first, last: read(0, starts[index] + first, starts[index] + last),
    )


def patches(p: int) -> Form:
    """A convolution's [D, 3, p, p] <-> [D, p * p * 3] with columns (row, column, channel)."""
    return Form(
        lambda t: [t[0].permute(0, 2, 3, 1).reshape(t[0].shape[0], -1)],
        lambda t: [t[0].reshape(-1, p, p, 3).permute(0, 3, 1, 2).contiguous()],
    )


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


GATE_UP_PER_EXPERT = Form(  # gate 0, up 0, gate 1, ... each [I, D] <-> [E, 2 I, D]
    lambda t: [torch.stack([torch.cat(t[i : i + 2]) for i in range(0, len(t), 2)])],
    lambda t: [half.contiguous() for expert in t[0] for half in expert.chunk(2)],
    lambda read, _, first, last: torch.stack([torch.cat((read(2 * e), read(2 * e + 1))) for e in range(first, last)]),
)
DOWN_PER_EXPERT = Form(  # [D, I] each <-> [E, D, I]
    lambda t: [torch.stack(t)],
    lambda t: [w.contiguous() for w in t[0]],
    lambda read, _, first, last: torch.stack([read(e) for e in range(first, last)]),
)


def reference(config: MolmoConfig, block: str | None = None, head: str = "transformer.ff_out") -> Table:
    """Keys of the reference's own checkpoints.

    Args:
        block: its `block_type`: sequential (fused q|k|v and up|gate), llama (separate) or moe; None takes moe for
            experts and sequential for the rest. "olmoe" spells blocks OLMo's way, as the released MolmoE does.
    """
    text, block = config.text, block or ("moe" if config.text.num_experts else "sequential")
    attention, mlp = ("attn.", "mlp.") if block == "olmoe" else ("", "")
    table = _reference_vision(config.vision) + _reference_connector(config)
    table += _pairs("embed.", "transformer.wte.", {"embedding": "embedding", "new_embedding": "new_embedding"})
    for i in range(text.num_hidden_layers):
        ours, theirs = f"layers.{i}.", f"transformer.blocks.{i}."
        table += _attention(text, ours + "self_attn.", theirs + attention, fused=block != "llama")
        table += _pairs(ours, theirs, _norms(text, attention + "attn_norm", mlp + "ff_norm"))
        table += _reference_mlp(text, ours + "mlp.", theirs + mlp, block)
    return table + _head(text, "transformer.ln_f", head)


def released(config: MolmoConfig, head: str = "lm_head") -> Table:
    """Keys of the released Hugging Face folders: the reference's behind `model.`; MolmoE spells its blocks OLMo's way.

    Args:
        head: MolmoE only; `transformer.ff_out` is the other spelling of the head that readers should try.
    """
    return _behind_model(reference(config, "olmoe", head) if config.text.num_experts else reference(config))


def text_backbone(text: TextConfig, fused_experts: bool = False) -> Table:
    """Keys of transformers' Qwen2, Llama, Olmo, Olmo2 and OLMoE causal language models.

    Args:
        fused_experts: OLMoE's experts as transformers 5 holds them in memory (3-D) instead of one by one as on disk.
    """
    table = [Rule(("embed.embedding",), ("model.embed_tokens.weight",), SAME)]
    norms = ("post_attention_layernorm", "post_feedforward_layernorm") if text.norm_after else None
    for i in range(text.num_hidden_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        names = [f"{p}_proj.weight" for p in "qkvo"] + [f"{p}_proj.bias" for p in "qkv" if text.attention_bias]
        names += [f"{p}_norm.weight" for p in "qk" if text.qk_norm]
        table += _pairs(ours + "self_attn.", theirs + "self_attn.", {n: n for n in names})
        table += _pairs(ours, theirs, _norms(text, *(norms or ("input_layernorm", "post_attention_layernorm"))))
        if text.num_experts and fused_experts:
            names = ["gate.weight", "experts.gate_up_proj", "experts.down_proj"]
            table += _pairs(ours + "mlp.", theirs + "mlp.", {n: n for n in names})
        elif text.num_experts:
            table += _experts(text, ours + "mlp.", theirs + "mlp.")
        else:
            table += _pairs(ours + "mlp.", theirs + "mlp.", {n: n for n in (f"{p}_proj.weight" for p in MLP)})
    return table + _head(text, "model.norm", "lm_head")


def vision_backbone(vision: VisionConfig) -> Table:
    """Keys of transformers 5's CLIP (and MetaCLIP), SigLIP and DINOv2 vision models, without a leading `vision_model.`.

    Layers beyond `num_hidden_layers` and everything behind the last block have no rule: Molmo drops them.
    """
    dino = vision.model_type == "dinov2"
    patch = "embeddings.patch_embeddings.projection" if dino else "embeddings.patch_embedding"
    table = [Rule(("vision.embeddings.patch_embedding.weight",), (patch + ".weight",), patches(vision.patch_size))]
    if vision.model_type != "clip":
        table += [Rule(("vision.embeddings.patch_embedding.bias",), (patch + ".bias",), SAME)]
    if dino:
        table += [
            Rule(("vision.embeddings.class_embedding",), ("embeddings.cls_token",), CLASS),
            Rule(("vision.embeddings.position_embedding",), ("embeddings.position_embeddings",), FIRST),
        ]
    else:
        names = {"position_embedding": "position_embedding.weight"}
        names |= {"class_embedding": "class_embedding"} if vision.model_type == "clip" else {}
        table += _pairs("vision.embeddings.", "embeddings.", names)
    if vision.model_type == "clip":  # transformers' spelling
        table += _affine("vision.embeddings.", "", {"pre_layernorm": "pre_layrnorm"})
    attention = "attention." if dino else "self_attn."
    names = {f"self_attn.{p}_proj": f"{attention}{p}_proj" for p in "qkv"} | {
        f"mlp.fc{i}": f"mlp.fc{i}" for i in (1, 2)
    }
    names["self_attn.out_proj"] = "attention.o_proj" if dino else "self_attn.out_proj"
    names |= {f"layer_norm{i}": f"norm{i}" if dino else f"layer_norm{i}" for i in (1, 2)}
    for i in range(vision.num_hidden_layers):
        ours, theirs = f"vision.layers.{i}.", f"encoder.{'layer' if dino else 'layers'}.{i}."
        table += _affine(ours, theirs, names)
        if dino:
            table += _pairs(ours, theirs, {f"layer_scale{j}": f"layer_scale{j}.lambda1" for j in (1, 2)})
    return table


def to_ours(table: Table, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield (our name, tensor), reading theirs one rule at a time."""
    for rule in table:
        yield from zip(rule.ours, rule.form.to_ours([read(key) for key in rule.theirs]))


def to_theirs(table: Table, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The inverse of `to_ours`."""
    for rule in table:
        yield from zip(rule.theirs, rule.form.to_theirs([read(name) for name in rule.ours]))


def detect(config: MolmoConfig, keys: Collection[str]) -> Table:
    """The table, of all spellings of the reference and of the released folders, that misses fewest of `keys`."""
    tables = [released(config), reference(config)]
    if config.text.num_experts:
        tables += [released(config, "transformer.ff_out"), _behind_model(reference(config))]
    else:
        tables += [reference(config, "llama")]
    keys = set(keys)
    return min(tables, key=lambda table: sum(key not in keys for rule in table for key in rule.theirs))


MLP = ("gate", "up", "down")


def _behind_model(table: Table) -> Table:
    moved = [tuple(key if key.startswith("lm_head") else "model." + key for key in rule.theirs) for rule in table]
    return [replace(rule, theirs=theirs) for rule, theirs in zip(table, moved)]


def _pairs(ours: str, theirs: str, names: dict[str, str]) -> Table:
    return [Rule((ours + a,), (theirs + b,), SAME) for a, b in names.items()]


def _affine(ours: str, theirs: str, names: dict[str, str]) -> Table:
    return _pairs(ours, theirs, {f"{a}.{p}": f"{b}.{p}" for a, b in names.items() for p in ("weight", "bias")})


def _norms(text: TextConfig, attention: str, mlp: str) -> dict[str, str]:
    if text.norm_type == "layer":  # OLMo's LayerNorm has no weights
        return {}
    first = "post_attention_layernorm" if text.norm_after else "input_layernorm"
    second = "post_feedforward_layernorm" if text.norm_after else "post_attention_layernorm"
    return {first + ".weight": attention + ".weight", second + ".weight": mlp + ".weight"}


def _head(text: TextConfig, norm: str, head: str) -> Table:
    names = {} if text.norm_type == "layer" else {"norm.weight": norm + ".weight"}
    names["lm_head.weight"] = head + ".weight"
    return _pairs("head.", "", names)


def _attention(text: TextConfig, ours: str, theirs: str, fused: bool) -> Table:
    size = text.head_dim or text.hidden_size // text.num_attention_heads
    q, kv = text.num_attention_heads * size, text.num_key_value_heads * size
    table = _pairs(ours, theirs, {"o_proj.weight": "attn_out.weight"})
    table += _pairs(ours, theirs, {f"{p}_norm.weight": f"{p}_norm.weight" for p in "qk" if text.qk_norm})
    for part in ("weight", "bias") if text.attention_bias else ("weight",):
        names = [f"{p}_proj.{part}" for p in "qkv"]
        if fused:
            table += [Rule(tuple(ours + n for n in names), (f"{theirs}att_proj.{part}",), rows(q, kv, kv))]
        else:
            table += _pairs(ours, theirs, {n: n for n in names})
    return table


def _reference_mlp(text: TextConfig, ours: str, theirs: str, block: str) -> Table:
    if block == "olmoe":
        return _experts(text, ours, theirs)
    if block == "moe":
        i, d, mlp = text.intermediate_size, text.hidden_size, theirs + "ffn.experts.mlp."
        return [
            Rule((ours + "gate.weight",), (theirs + "ffn.router.layer.weight",), SAME),
            Rule((ours + "experts.gate_up_proj",), (mlp + "w1", mlp + "v1"), stacked_gate_up(i, d)),
            Rule((ours + "experts.down_proj",), (mlp + "w2",), stacked_down(i, d)),
        ]
    table = _pairs(ours, theirs, {"down_proj.weight": "ff_out.weight"})
    if block == "llama":
        names = {"gate_proj.weight": "ff_proj1.weight", "up_proj.weight": "ff_proj2.weight"}
        return table + _pairs(ours, theirs, names)
    half = text.intermediate_size  # up comes first, unlike in most fusions
    return table + [
        Rule((ours + "up_proj.weight", ours + "gate_proj.weight"), (theirs + "ff_proj.weight",), rows(half, half))
    ]


def _experts(text: TextConfig, ours: str, theirs: str) -> Table:
    each = [f"{theirs}experts.{e}." for e in range(text.num_experts)]
    gate_up = tuple(f"{expert}{p}_proj.weight" for expert in each for p in ("gate", "up"))
    return [
        Rule((ours + "gate.weight",), (theirs + "gate.weight",), SAME),
        Rule((ours + "experts.gate_up_proj",), gate_up, GATE_UP_PER_EXPERT),
        Rule((ours + "experts.down_proj",), tuple(f"{expert}down_proj.weight" for expert in each), DOWN_PER_EXPERT),
    ]


def _reference_vision(vision: VisionConfig) -> Table:
    ours, theirs = "vision.embeddings.", "vision_backbone.image_vit."
    names = {"patch_embedding.weight": "patch_embedding.weight", "position_embedding": "positional_embedding"}
    names |= {} if vision.model_type == "siglip" else {"class_embedding": "class_embedding"}
    names |= {} if vision.model_type == "clip" else {"patch_embedding.bias": "patch_embedding.bias"}
    table = _pairs(ours, theirs, names)
    if vision.model_type == "clip":
        table += _affine(ours, theirs, {"pre_layernorm": "pre_ln"})
    names = {f"self_attn.{p}_proj": f"attention.w{p}" for p in "qkv"} | {"self_attn.out_proj": "attention.wo"}
    names |= {"mlp.fc1": "feed_forward.w1", "mlp.fc2": "feed_forward.w2"}
    names |= {"layer_norm1": "attention_norm", "layer_norm2": "ffn_norm"}
    for i in range(vision.num_hidden_layers):
        ours, theirs = f"vision.layers.{i}.", f"vision_backbone.image_vit.transformer.resblocks.{i}."
        table += _affine(ours, theirs, names)
        if vision.model_type == "dinov2":
            table += _pairs(ours, theirs, {"layer_scale1": "lambda1", "layer_scale2": "lambda2"})
    return table


def _reference_connector(config: MolmoConfig) -> Table:
    connector, theirs = config.connector, "vision_backbone."
    table = [] if connector.padding_embed == "none" else _pairs("connector.", theirs, {"pad_embed": "pad_embed"})
    if connector.pooling != "stack":
        names = {f"{p}_proj": f"w{p}" for p in "qkv"} | {"out_proj": "wo"}
        table += _affine("connector.pooling.", theirs + "image_pooling_2d.", names)
    names = {"gate_proj.weight": "w1.weight", "up_proj.weight": "w3.weight", "down_proj.weight": "w2.weight"}
    if connector.projector == "linear":
        return table + _pairs("connector.projector.", theirs + "image_projector.", {"weight": "weight"})
    return table + _pairs("connector.projector.", theirs + "image_projector.", names)
