"""The connector: features of a crop's patches become a few vectors of the decoder's width.

Shapes: N crops, P patches of a crop, M windows of W patches, C ViT width, F = C x layers, D decoder width.
Sources: allenai/molmo at 793fa38, olmo/model.py; allenai/molmo2 at f3cb108, the connector with pooling_attention_mask.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from molmo_ds.architecture import ConnectorConfig, TextConfig, VisionConfig
from molmo_ds.batch import Carry
from molmo_ds.model.linear import Linear
from molmo_ds.model.vision import used_layers
from molmo_ds.ops.pool_patches import gather_patches, pool_patches
from molmo_ds.ops.swiglu import swiglu


class Pooling(nn.Module):
    """One query per window attends to the window's patches.

    Without `masked` a patch that is missing is a zero vector, as in the first Molmo; with it, it is no key.
    """

    def __init__(self, features: int, width: int, heads: int, query: str, masked: bool):
        super().__init__()
        self.head_dim = width // heads
        self.query = query
        self.masked = masked
        self.q_proj = Linear(features, width)
        self.k_proj = Linear(features, width)
        self.v_proj = Linear(features, width)
        self.out_proj = Linear(width, width)

    def forward(self, patches: Tensor, mean: Tensor, windows: Tensor) -> Tensor:
        """patches [M, W, F], mean [M, F], windows [M, W] -> [M, C]."""
        query = mean if self.query == "attention_meanq" else patches[:, 0]
        q = self.q_proj(query)
        k = self.k_proj(patches)
        v = self.v_proj(patches)
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (q, k, v))
        pooled = pool_patches(q, k, v, windows, self.masked)
        return self.out_proj(pooled.flatten(1))


class GatedMLP(nn.Module):
    """down(silu(gate) * up), without bias."""

    def __init__(self, inputs: int, inner: int, outputs: int):
        super().__init__()
        self.gate_proj = Linear(inputs, inner, bias=False)
        self.up_proj = Linear(inputs, inner, bias=False)
        self.down_proj = Linear(inner, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return self.down_proj(swiglu(*self.project(x)))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and up, [..., inner] each."""
        return self.gate_proj(x), self.up_proj(x)


class Connector(nn.Module):
    """Padding embedding, pooling, projector."""

    def __init__(self, vision: VisionConfig, connector: ConnectorConfig, text: TextConfig):
        super().__init__()
        used = used_layers(vision)
        width = vision.hidden_size
        self.order = [used.index(i % vision.num_hidden_layers) for i in vision.feature_layers]
        self.masked = connector.pooling_mask
        self.padding = connector.padding_embed
        self.dropout = connector.feature_dropout
        features = width * len(self.order)
        self.pad_embed = None
        if self.padding != "none":
            shape = (2, features) if self.padding == "pad_and_partial_pad" else (features,)
            self.pad_embed = nn.Parameter(torch.empty(shape))
        self.pooling = None
        if connector.pooling != "stack":
            heads = vision.num_attention_heads
            self.pooling = Pooling(features, width, heads, connector.pooling, self.masked)
        inputs = features * connector.pooling_size**2 if self.pooling is None else width
        if connector.projector == "mlp":
            inner = connector.intermediate_size or text.intermediate_size
            self.projector: nn.Module = GatedMLP(inputs, inner, text.hidden_size)
        else:
            self.projector = Linear(inputs, text.hidden_size, bias=False)

    def forward(self, x: Carry) -> Carry:
        """features, image_masks and windows -> image_features."""
        layers = [x.features[i] for i in self.order]
        image_features = self.project(layers, x.image_masks, x.windows)
        return x._replace(
            features=(), image_masks=None, windows=None, image_features=image_features
        )

    def project(self, layers: list[Tensor], masks: Tensor, windows: Tensor) -> Tensor:
        """layers: tensors [N, S, C] in the order of the features; masks float32 [N, P]; windows [M, W] -> [M, D]."""
        shares = self.pad_shares(masks)
        table = self.pad_embed
        if table is None:
            features = layers[0].shape[-1] * len(layers)
            table = layers[0].new_zeros(0, features)
        table = table.view(-1, table.shape[-1])
        patches, mean = gather_patches(layers, shares, table, windows, self.masked)
        if self.dropout and self.training:
            patches = F.dropout(patches, self.dropout)
            there = (windows >= 0).sum(1, keepdim=True).clamp(min=1)
            mean = patches.sum(1) / there if self.masked else patches.mean(1)
        pooled = (
            patches.flatten(1) if self.pooling is None else self.pooling(patches, mean, windows)
        )
        return self.projector(pooled)

    def pad_shares(self, masks: Tensor) -> Tensor:
        """Shares [N, P, kinds] of the rows of `pad_embed` that are added to a patch; a mask of -1 counts as partial."""
        is_padding = masks == 0
        if self.padding == "pad_and_partial_pad":
            is_partial = (masks < 1) & ~is_padding
            return torch.stack((is_padding, is_partial), -1).float()
        if self.padding == "pad_embed":
            return is_padding[..., None].float()
        if self.padding == "regress":
            return masks.clamp(min=0)[..., None]
        return masks.new_zeros(*masks.shape, 0)
