"""The vision tower: CLIP, SigLIP and DINOv2 from one pair of layers.

Shapes: N crops, P patches of a crop, S = P + class token, D width, p patch side.
Source: allenai/molmo at 793fa38, olmo/model.py.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from molmo_ds.architecture import PIXEL_STATISTICS, ImageConfig, VisionConfig
from molmo_ds.batch import Carry
from molmo_ds.model.linear import Linear
from molmo_ds.ops.crops import normalise_patches
from molmo_ds.ops.quick_gelu import quick_gelu
from molmo_ds.ops.tree_attention import tree_attention

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


def used_layers(vision: VisionConfig) -> list[int]:
    """Indices (from 0) of the blocks whose outputs are features, ascending."""
    return sorted({i % vision.num_hidden_layers for i in vision.feature_layers})


class VisionEmbeddings(nn.Module):
    """Crops to tokens: patch embedding, class token, positions, and CLIP's LayerNorm before the first block."""

    def __init__(self, vision: VisionConfig, images: ImageConfig):
        super().__init__()
        width = vision.hidden_size
        kind = vision.model_type
        self.grid = vision.image_size // vision.patch_size
        self.patch_size = vision.patch_size
        self.pixels = PIXEL_STATISTICS[images.resize]
        self.class_tokens = vision.class_tokens
        positions = (vision.num_positions or self.grid**2) + self.class_tokens
        if self.class_tokens:
            self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = Linear(vision.patch_size**2 * 3, width, bias=kind != "clip")
        self.position_embedding = nn.Parameter(torch.empty(positions, width))
        self.pre_layernorm = nn.LayerNorm(width, vision.layer_norm_eps) if kind == "clip" else None

    def forward(self, x: Carry) -> Carry:
        """images -> hidden."""
        return x._replace(images=None, hidden=self.tokens(x.images))

    def tokens(self, images: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] or float [N, P, p * p * 3] -> [N, S, D]."""
        if images.dtype == torch.uint8:
            images = normalise_patches(images, *self.pixels, self.patch_size)
        hidden = self.patch_embedding(images.to(self.position_embedding.dtype))
        if self.class_tokens:
            first = self.class_embedding.to(hidden.dtype).expand(len(hidden), 1, -1)
            hidden = torch.cat((first, hidden), 1)
        hidden = hidden + self.positions()
        return hidden if self.pre_layernorm is None else self.pre_layernorm(hidden)

    def positions(self) -> Tensor:
        """The position table [S, D], resized (bicubic, antialiased) where its grid is not the crop's."""
        table = self.position_embedding
        side = round((len(table) - self.class_tokens) ** 0.5)
        if side == self.grid:
            return table
        patches = table[self.class_tokens :].T.reshape(1, -1, side, side).float()
        size = (self.grid, self.grid)
        patches = F.interpolate(patches, size, mode="bicubic", align_corners=False, antialias=True)
        resized = patches.flatten(2)[0].T
        return torch.cat((table[: self.class_tokens], resized.to(table.dtype)))


class VisionAttention(nn.Module):
    """Every token of a crop sees every other."""

    def __init__(self, vision: VisionConfig):
        super().__init__()
        width = vision.hidden_size
        self.head_dim = width // vision.num_attention_heads
        self.dropout = vision.attention_dropout
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, D] -> [N, S, D]."""
        q = self.heads(self.q_proj(x))
        k = self.heads(self.k_proj(x))
        v = self.heads(self.v_proj(x))
        out = tree_attention(q, k, v, None, self.dropout if self.training else 0.0)
        return self.out_proj(out.transpose(1, 2).reshape(x.shape))

    def heads(self, x: Tensor) -> Tensor:
        """[N, S, D] -> [N, heads, S, D / heads]."""
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)


class VisionMLP(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, vision: VisionConfig):
        super().__init__()
        self.act = ACTIVATIONS[vision.hidden_act]
        self.fc1 = Linear(vision.hidden_size, vision.intermediate_size)
        self.fc2 = Linear(vision.intermediate_size, vision.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, D] -> [N, S, D]."""
        return self.fc2(self.act(self.fc1(x)))


class VisionLayer(nn.Module):
    """One block; its output is a feature if the connector wants it, and after the last feature it is not run."""

    def __init__(self, vision: VisionConfig, index: int):
        super().__init__()
        used = used_layers(vision)
        self.is_feature = index in used
        self.is_last = index == used[-1]
        self.is_idle = index > used[-1]
        self.layer_norm1 = nn.LayerNorm(vision.hidden_size, vision.layer_norm_eps)
        self.self_attn = VisionAttention(vision)
        self.layer_norm2 = nn.LayerNorm(vision.hidden_size, vision.layer_norm_eps)
        self.mlp = VisionMLP(vision)
        scaled = vision.model_type == "dinov2"
        self.layer_scale1 = nn.Parameter(torch.empty(vision.hidden_size)) if scaled else None
        self.layer_scale2 = nn.Parameter(torch.empty(vision.hidden_size)) if scaled else None

    def forward(self, x: Carry) -> Carry:
        """hidden -> hidden, None after the last feature, and features with one more where this block is one."""
        if self.is_idle:
            return x
        return self.passed_on(x, self.run(x.hidden))

    def passed_on(self, x: Carry, hidden: Tensor) -> Carry:
        """x with the output [N, S, D] of this block where it is wanted."""
        features = (*x.features, hidden) if self.is_feature else x.features
        return x._replace(hidden=None if self.is_last else hidden, features=features)

    def run(self, hidden: Tensor) -> Tensor:
        """[N, S, D] -> [N, S, D]."""
        out = self.self_attn(self.layer_norm1(hidden))
        hidden = hidden + (out if self.layer_scale1 is None else out * self.layer_scale1)
        out = self.mlp(self.layer_norm2(hidden))
        return hidden + (out if self.layer_scale2 is None else out * self.layer_scale2)
