"""The decoder: Qwen2 and 3, Llama, OLMo 1 to 3 and OLMoE from one layer, with the embedding and the head.

Shapes: B sequences, T tokens, D width, H heads, G key-value heads, d head width, E words of the head, R learnt rows.
Sources: allenai/molmo at 793fa38, olmo/model.py; allenai/molmo2 at f3cb108, olmo/nn/llm.py.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from molmo_ds.architecture import TextConfig
from molmo_ds.batch import Carry, Shared
from molmo_ds.model.connector import GatedMLP
from molmo_ds.model.linear import Linear
from molmo_ds.ops.experts import experts
from molmo_ds.ops.linear import linear
from molmo_ds.ops.rms_norm import rms_norm
from molmo_ds.ops.rope import rope_table, rotate
from molmo_ds.ops.splice import splice
from molmo_ds.ops.tree_attention import AttentionPlan, attention_plan, tree_attention
from molmo_ds.ops.weighted_cross_entropy import weighted_cross_entropy


class Core:
    """The attention between projections: a KV cache or sequence parallelism puts its own in `Attention.core`."""

    # fields of a Carry, int [B, T], that the plan is made of; image_ids is None where attention is causal
    planned = ("document_ids", "branch_ids", "image_ids")

    def plan(self, x: Carry, dtype: torch.dtype) -> Any:
        """The plan that `__call__` takes, from the tokens' ids; made once per forward pass, for queries of `dtype`."""
        return attention_plan(x.document_ids, x.branch_ids, dtype, x.image_ids)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, dropout_p: float
    ) -> Tensor:
        """q [B, H, T, d], k and v [B, G, T, d] -> [B, H, T, d]."""
        return tree_attention(q, k, v, plan, dropout_p)


class Norm(nn.Module):
    """RMSNorm, or OLMo v1's LayerNorm without weights."""

    def __init__(self, text: TextConfig, width: int | None = None):
        super().__init__()
        self.eps = text.rms_norm_eps
        width = width or text.hidden_size
        self.weight = nn.Parameter(torch.empty(width)) if text.norm_type == "rms" else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if self.weight is None:
            return F.layer_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)
        return rms_norm(x, self.weight, self.eps)


class Embed(nn.Module):
    """Two embedding tables, and the image features added at their tokens.

    Args:
        zero_row: the id of a token whose vector is zero and learns nothing; its row in the table is never read.
        selects: whether the scorer follows, which still needs the features.
    """

    def __init__(self, text: TextConfig, zero_row: int | None = None, selects: bool = False):
        super().__init__()
        self.zero_row = zero_row
        self.embedding = nn.Parameter(torch.empty(text.embedding_size, text.hidden_size))
        self.new_embedding = nn.Parameter(torch.empty(text.additional_vocab_size, text.hidden_size))
        self.dropout = text.embedding_dropout
        self.causal = text.image_attention == "causal"
        self.selects = selects

    def forward(self, x: Carry) -> Carry:
        """input_ids, image_features and image_positions -> hidden."""
        ids, extra = self.read(x.input_ids)
        hidden = splice(ids, self.embedding, extra, x.image_features, x.image_positions)
        if self.dropout:
            hidden = F.dropout(hidden, self.dropout, self.training)
        return x._replace(
            input_ids=None,
            image_ids=None if self.causal else x.image_ids,
            image_features=x.image_features if self.selects else None,
            image_positions=None,
            hidden=hidden,
        )

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(ids [B, T], the second table) as they are looked up: `zero_row` leads to a constant after the last row."""
        if self.zero_row is None:
            return ids, self.new_embedding
        after = len(self.embedding) + len(self.new_embedding)
        return ids.masked_fill(ids == self.zero_row, after), F.pad(self.new_embedding, (0, 0, 0, 1))


class Rotary:
    """The rotary positions of a model, whose layers may be scaled or not (OLMo3 scales every fourth)."""

    def __init__(self, text: TextConfig):
        self.head_dim = text.head_width
        self.theta = text.rope_theta
        self.layers = text.rope_scaling_layers
        self.scalings = [text.rope_scaling]
        if self.layers is not None and text.rope_scaling is not None:
            self.scalings = [None, text.rope_scaling]

    def tables(self, position_ids: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """(cosines, sines) [B, T, d] of each scaling, for position_ids [B, T]."""
        return tuple(
            rope_table(position_ids, self.head_dim, self.theta, scaling)
            for scaling in self.scalings
        )

    def table_of(self, layer: int) -> int:
        """The number of a layer's table."""
        return int(len(self.scalings) > 1 and layer in self.layers)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, text: TextConfig):
        super().__init__()
        self.head_dim = text.head_width
        self.clip = text.clip_qkv
        self.dropout = text.attention_dropout
        self.core = Core()
        queries = text.num_attention_heads * self.head_dim
        keys = text.num_key_value_heads * self.head_dim
        self.q_proj = Linear(text.hidden_size, queries, bias=text.attention_bias)
        self.k_proj = Linear(text.hidden_size, keys, bias=text.attention_bias)
        self.v_proj = Linear(text.hidden_size, keys, bias=text.attention_bias)
        self.o_proj = Linear(queries, text.hidden_size, bias=False)
        self.per_head = text.qk_norm_per_head
        normed = (self.head_dim, self.head_dim) if self.per_head else (queries, keys)
        self.q_norm = Norm(text, normed[0]) if text.qk_norm else None
        self.k_norm = Norm(text, normed[1]) if text.qk_norm else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, plan: Any) -> Tensor:
        """[B, T, D] -> [B, T, D]; cos and sin [B, T, d]; plan as `core` made it."""
        q, k, v = self.project(x)
        if self.clip is not None:
            q, k, v = (t.clamp(-self.clip, self.clip) for t in (q, k, v))
        if self.per_head:
            q = q.unflatten(2, (-1, self.head_dim))
            k = k.unflatten(2, (-1, self.head_dim))
        if self.q_norm is not None:
            q = self.q_norm(q).to(q.dtype)
            k = self.k_norm(k).to(k.dtype)
        by_head = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (t.reshape(by_head).transpose(1, 2) for t in (q, k, v))
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin)
        out = self.core(q, k, v, plan, self.dropout if self.training else 0.0)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, H * d], keys and values [B, T, G * d] of x [B, T, D]."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


class Experts(nn.Module):
    """The experts' weights, fused in three dimensions."""

    def __init__(self, text: TextConfig):
        super().__init__()
        n = text.num_experts
        width = text.hidden_size
        inner = text.intermediate_size
        self.top_k = text.num_experts_per_tok
        self.normalise = text.norm_topk_prob
        self.first = 0  # of those held, where others hold the rest
        self.gate_up_proj = nn.Parameter(torch.empty(n, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(n, width, inner))

    def forward(self, x: Tensor, router_logits: Tensor) -> Tensor:
        """x [R, D], router_logits float32 [R, n] -> [R, D]."""
        return experts(
            x,
            router_logits,
            self.gate_up_proj,
            self.down_proj,
            self.top_k,
            self.normalise,
            self.first,
        )


class MoE(nn.Module):
    """A router and its experts."""

    def __init__(self, text: TextConfig):
        super().__init__()
        self.gate = Linear(text.hidden_size, text.num_experts, bias=False)
        self.experts = Experts(text)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        rows = x.reshape(-1, x.shape[-1])
        return self.experts(rows, self.gate(rows).float()).view_as(x)


class DecoderLayer(nn.Module):
    """Attention and MLP, normalised before (most) or after (OLMo2), with response dropout on both branches."""

    def __init__(self, text: TextConfig, index: int = 0):
        super().__init__()
        self.rotary = Rotary(text)
        self.table = self.rotary.table_of(index)
        self.norm_after = text.norm_after
        self.dropout = text.residual_dropout
        self.response_dropout = text.response_residual_dropout
        self.self_attn = Attention(text)
        width = text.hidden_size
        self.mlp = MoE(text) if text.num_experts else GatedMLP(width, text.intermediate_size, width)
        if text.norm_after:
            self.post_attention_layernorm = Norm(text)
            self.post_feedforward_layernorm = Norm(text)
        else:
            self.input_layernorm = Norm(text)
            self.post_attention_layernorm = Norm(text)

    def forward(self, x: Carry) -> Carry:
        """hidden -> hidden."""
        x = self.with_shared(x)
        hidden = self.run(x.hidden, x.loss_weights, *self.positions(x.shared), x.shared.plan)
        return x._replace(hidden=hidden)

    def with_shared(self, x: Carry) -> Carry:
        """x with `shared`, made here if x has none or has it on another device."""
        device = x.hidden.device
        if x.shared is not None and x.shared.rotary[0][0].device == device:
            return x
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else x.hidden.dtype
        plan = self.self_attn.core.plan(x, dtype)
        return x._replace(shared=Shared(plan, self.rotary.tables(x.position_ids)))

    def positions(self, shared: Shared) -> tuple[Tensor, Tensor]:
        """This layer's cosines and sines [B, T, d]."""
        return shared.rotary[self.table]

    def run(
        self,
        hidden: Tensor,
        loss_weights: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        plan: Any,
        ends: Tensor | None = None,
    ) -> Tensor:
        """hidden [B, T, D] -> [B, T, D].

        Args:
            ends: int64 [A], of the flattened B * T: the only tokens whose MLP is wanted, as of the last layer in a
                prefill; the result is then [A, D]. Not for training with dropout.
        """
        out = self.self_attn(
            hidden if self.norm_after else self.input_layernorm(hidden), cos, sin, plan
        )
        if self.norm_after:
            out = self.post_attention_layernorm(out)
        hidden = hidden + self.drop(out, loss_weights)
        if ends is not None:
            hidden = hidden.flatten(0, 1)[ends]
        if self.norm_after:
            out = self.post_feedforward_layernorm(self.mlp(hidden))
        else:
            out = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + self.drop(out, loss_weights)

    def drop(self, x: Tensor, loss_weights: Tensor | None) -> Tensor:
        """Elementwise dropout of x [B, T, D] with one rate where a response is learnt and another elsewhere."""
        if not self.training or not (self.dropout or self.response_dropout):
            return x
        keep = torch.where(loss_weights > 0, 1 - self.response_dropout, 1 - self.dropout)[..., None]
        kept = torch.rand_like(x, dtype=torch.float32) < keep
        return x * (kept / keep).to(x.dtype)


class LMHead(nn.Linear):
    """Logits, or the loss without ever holding all logits; both in `forward`, where ZeRO-3 gathers the weight."""

    def forward(self, x: Tensor, target: tuple[Tensor, Tensor, float] | None = None) -> Any:
        """x [..., D] -> logits [..., E]; with (labels [R], loss_weights [R], z_loss) and x [R, D] -> three sums."""
        if target is None:
            return linear(x, self.weight)
        labels, loss_weights, z_loss = target
        return weighted_cross_entropy(x, self.weight, labels, loss_weights, z_loss)


class Head(nn.Module):
    """The last norm, the head and the loss."""

    def __init__(self, text: TextConfig, z_loss: float):
        super().__init__()
        self.z_loss = z_loss
        self.norm = Norm(text)
        self.lm_head = LMHead(text.hidden_size, text.embedding_size, bias=False)

    def forward(self, x: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """x -> (ce_sum, z_sum, accuracy_sum), float32 scalars; the loss is ce_sum + z_sum."""
        rows = x.learnt_rows
        labels = x.labels.take(rows)
        weights = x.loss_weights.take(rows)
        hidden = self.norm(x.hidden.flatten(0, 1).index_select(0, rows))
        return self.lm_head(hidden, (labels, weights, self.z_loss))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] as the last layer leaves it -> [..., E]."""
        return self.lm_head(self.norm(hidden))
