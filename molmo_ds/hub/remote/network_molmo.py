"""The layers under the released models' names, so that what lies in memory is what the folder's shards hold.

LoRA, device maps, offloading, quantisation and `load_state_dict` then find those names in every version of
transformers. The layers are the package's own: they read their parts by our names, which lead to the released ones.

Shapes: B sequences, T tokens, S keys, D width, R tokens of a batch, E experts.
"""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from molmo_ds.architecture import TextConfig
from molmo_ds.batch import Carry, Shared
from molmo_ds.hub.remote.attention_molmo import CachedCore
from molmo_ds.model.connector import Connector, GatedMLP, Pooling
from molmo_ds.model.decoder import Attention, DecoderLayer, Embed, MoE
from molmo_ds.model.linear import Linear
from molmo_ds.model.molmo import Molmo
from molmo_ds.model.vision import VisionAttention, VisionEmbeddings, VisionLayer, VisionMLP
from molmo_ds.ops.splice import splice

WQ = {"q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "out_proj": "wo"}


class Renamed(nn.Module):
    """A layer of the package whose parts have other names, and may lie in a layer above or below it."""

    @classmethod
    def of(cls, layer: nn.Module, names: Mapping[str, str], owner: nn.Module | None = None) -> Any:
        """The layer itself as this class.

        Args:
            names: our name of a part -> its name, in `owner` if that is given.
        """
        self = cls.__new__(cls)
        self.__dict__ = layer.__dict__
        self.__dict__["names"] = dict(names)
        self.__dict__["owner"] = owner  # not as a child: it holds this layer
        for ours, theirs in names.items():
            *path, leaf = theirs.split(".")
            place = (owner or self).get_submodule(".".join(path))
            for parts in ("_modules", "_parameters"):
                if ours in self.__dict__[parts]:
                    getattr(place, parts)[leaf] = self.__dict__[parts].pop(ours)
        return self

    def __getattr__(self, name: str) -> Any:
        """A part by our name; read each time, since LoRA and quantisation replace what the name leads to."""
        names = self.__dict__.get("names", {})
        if name not in names:
            return super().__getattr__(name)
        return attrgetter(names[name])(self.__dict__["owner"] or self)


class VisionBlockAttention(Renamed, VisionAttention):
    """Attention of a block of the tower."""


class VisionBlockMLP(Renamed, VisionMLP):
    """MLP of a block of the tower."""


class VisionBlock(Renamed, VisionLayer):
    """A block of the tower."""


class VisionTransformer(Renamed, VisionEmbeddings):
    """Crops to tokens; it holds the tower's blocks, which are called after it."""


class ImagePooling(Renamed, Pooling):
    """Patches of a window to one vector."""


class ImageProjector(Renamed, GatedMLP):
    """Pooled patches to the decoder's width."""


class VisionBackbone(Renamed, Connector):
    """The connector; it holds the tower, which is called before it."""


class FusedAttention(Renamed, Attention):
    """Attention with queries, keys and values from one matrix."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See Attention."""
        return self.att_proj(x).split(self.sizes, -1)


class FusedMLP(Renamed, GatedMLP):
    """The MLP with gate and up from one matrix; up comes first there."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See GatedMLP."""
        up, gate = self.ff_proj(x).chunk(2, -1)
        return gate, up


class ExpertList(nn.ModuleList):
    """Experts with matrices of their own."""

    def __init__(self, text: TextConfig) -> None:
        width = text.hidden_size
        super().__init__(
            GatedMLP(width, text.intermediate_size, width) for _ in range(text.num_experts)
        )
        self.top_k = text.num_experts_per_tok
        self.normalise = text.norm_topk_prob

    def forward(self, x: Tensor, router_logits: Tensor) -> Tensor:
        """x [R, D], router_logits float32 [R, E] -> [R, D]."""
        shares, chosen = router_logits.softmax(-1).topk(self.top_k, -1)
        if self.normalise:
            shares = shares / shares.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            rows, places = (chosen == expert).nonzero(as_tuple=True)
            answers = self[expert](x[rows]) * shares[rows, places, None]
            out = out.index_add(0, rows, answers.to(out.dtype))
        return out


class Block(Renamed, DecoderLayer):
    """A layer of the decoder."""

    def with_shared(self, x: Carry) -> Carry:
        """x with what the layers share, which follows the hidden states to another device."""
        device = x.hidden.device
        if x.shared.rotary[0][0].device == device:
            return x
        tables = tuple((cos.to(device), sin.to(device)) for cos, sin in x.shared.rotary)
        return x._replace(shared=Shared(x.shared.plan, tables))


class WordEmbedding(Renamed, Embed):
    """Two tables as one, from ids to vectors."""

    def forward(self, ids: Tensor) -> Tensor:
        """int [B, T] -> [B, T, D]."""
        nothing = self.new_embedding.new_zeros(1, self.embedding_dim, device=ids.device)
        nowhere = torch.full((1,), -1, device=ids.device)
        ids, extra = self.read(ids)
        return splice(ids, self.embedding, extra, nothing, nowhere)

    @property
    def num_embeddings(self) -> int:
        """Rows of both tables."""
        return len(self.embedding) + len(self.new_embedding)

    @property
    def embedding_dim(self) -> int:
        """Width."""
        return self.embedding.shape[1]

    @property
    def weight(self) -> Tensor:
        """A copy of both tables, one after the other: [rows, D]."""
        return torch.cat((self.embedding, self.new_embedding.to(self.embedding.dtype)))

    def resize(self, words: int, std: float) -> None:
        """Cut the two tables at another id; rows keep their ids, and rows beyond the last are drawn."""
        table = self.weight.detach()
        missing = max(words + 1 - len(table), 0)  # the second table keeps a row
        drawn = torch.randn(missing, self.embedding_dim, device=table.device) * std
        table = torch.cat((table, drawn.to(table.dtype)))
        learns = self.embedding.requires_grad
        self.embedding = nn.Parameter(table[:words].clone(), learns)
        self.new_embedding = nn.Parameter(table[words:].clone(), learns)


def backbone(network: Molmo) -> VisionBackbone:
    """Tower and connector, one inside the other."""
    connector = network.connector
    names = {"pooling": "image_pooling_2d", "projector": "image_projector"}
    if connector.pooling is not None:
        connector.pooling = ImagePooling.of(connector.pooling, WQ)
    if isinstance(connector.projector, GatedMLP):
        mlp = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
        connector.projector = ImageProjector.of(connector.projector, mlp)
    out = VisionBackbone.of(connector, names)
    tower = {"position_embedding": "positional_embedding", "pre_layernorm": "pre_ln"}
    out.image_vit = VisionTransformer.of(network.vision.embeddings, tower)
    out.image_vit.transformer = nn.Module()
    out.image_vit.transformer.resblocks = nn.ModuleList(map(vision_block, network.vision.layers))
    return out


def vision_block(layer: VisionLayer) -> VisionBlock:
    """A block of the tower."""
    layer.self_attn = VisionBlockAttention.of(layer.self_attn, WQ)
    layer.mlp = VisionBlockMLP.of(layer.mlp, {"fc1": "w1", "fc2": "w2"})
    names = {
        "self_attn": "attention",
        "mlp": "feed_forward",
        "layer_norm1": "attention_norm",
        "layer_norm2": "ffn_norm",
        "layer_scale1": "lambda1",
        "layer_scale2": "lambda2",
    }
    return VisionBlock.of(layer, names)


def block(layer: DecoderLayer, index: int, text: TextConfig) -> Block:
    """A layer of the decoder: of a mixture of experts with parts of its own, else all in one."""
    attention = layer.self_attn
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    attention.sizes = [part.out_features for part in parts]
    attention.att_proj = Linear(text.hidden_size, sum(attention.sizes), text.attention_bias)
    del attention.q_proj, attention.k_proj, attention.v_proj
    attention.core = CachedCore(index)
    first = "input_layernorm"
    second = "post_attention_layernorm"
    if text.norm_after:
        first = "post_attention_layernorm"
        second = "post_feedforward_layernorm"
    if isinstance(layer.mlp, MoE):
        layer.self_attn = FusedAttention.of(attention, {"o_proj": "attn_out"})
        layer.mlp.experts = ExpertList(text)
        names = {"self_attn": "attn", first: "attn.attn_norm", second: "mlp.ff_norm"}
        return Block.of(layer, names)
    mlp = layer.mlp
    mlp.ff_proj = Linear(text.hidden_size, 2 * text.intermediate_size, bias=False)
    del mlp.gate_proj, mlp.up_proj
    out = Block.of(layer, {first: "attn_norm", second: "ff_norm"})
    same = {name: name for name in ("att_proj", "q_norm", "k_norm")}
    out.self_attn = FusedAttention.of(attention, {**same, "o_proj": "attn_out"}, out)
    out.mlp = FusedMLP.of(mlp, {"ff_proj": "ff_proj", "down_proj": "ff_out"}, out)
    return out
