"""HeMolmo: windows of a picture are scored in a first pass over its low resolution, and the decoder sees the best.

Shapes: B rows, T tokens, D width, M windows, L low and H high windows and K picks of a row, F = layers x D.
Source: mattw-ai2/robo_mm_olmo_gantry at a1b4426, olmo/models/he_molmo.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from molmo_ds.architecture import SCORER, MolmoConfig, SelectionConfig, TextConfig
from molmo_ds.batch import PER_TOKEN, Carry
from molmo_ds.model.connector import GatedMLP
from molmo_ds.model.decoder import Core, DecoderLayer, Norm
from molmo_ds.model.linear import Linear
from molmo_ds.ops.tree_attention import AttentionPlan, visible

LOWEST = torch.finfo(torch.bfloat16).min  # score of what is not there
SATURATED = 10.0  # scores beyond it cost saturation_loss


class Scored(GatedMLP):
    """A gated MLP that ends in a few scores, with bias."""

    def __init__(self, inputs: int, scores: int, normalize: bool):
        super().__init__(inputs, SCORER, scores)
        self.down_proj = Linear(SCORER, scores)
        self.scale = SCORER**-0.5 if normalize else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., scores]."""
        return super().forward(x) * self.scale


class Scorer(nn.Module):
    """Scores the windows, and adds the features of the best to the tokens that show them."""

    def __init__(self, text: TextConfig, selection: SelectionConfig):
        super().__init__()
        self.selection = selection
        layers = selection.scored_layers or text.num_hidden_layers
        scored = layers * text.hidden_size
        self.layers = layers
        self.low = None
        if selection.scorer == "linear":
            self.low = Linear(scored, 4, bias=False)
        elif selection.scorer == "mlp":
            self.low = Scored(scored, 4, selection.normalize)
        self.low_norm = Norm(text, scored) if selection.norm and self.low is not None else None
        self.prior = Scored(text.hidden_size, 1, selection.normalize)
        self.prior_norm = Norm(text) if selection.norm else None
        self.query = None
        if selection.vector_query != "none":
            more = 2 if selection.vector_query == "scaled" else 0
            self.query = Linear(scored, text.hidden_size + more)

    def forward(self, x: Carry) -> Carry:
        """features (of the first pass), image_features and hidden -> hidden and position_ids with the picks."""
        high = _gathered(x.image_features, x.candidates)
        scores = self.scores(x, high)
        picked, order = scores.topk(x.picked_tokens.shape[1], sorted=True)
        shown = (picked > LOWEST) & (x.picked_tokens >= 0)
        importance = picked.sigmoid()
        batch, tokens = x.position_ids.shape
        index = torch.where(
            x.picked_tokens >= 0, x.picked_tokens, tokens
        )  # the column after the last
        features = high.gather(1, order[..., None].expand(-1, -1, high.shape[-1]))
        features = torch.where((x.picked_tokens >= 0)[..., None], features, 0)
        hidden = F.pad(x.hidden, (0, 0, 0, 1))
        hidden = hidden.scatter_add(
            1, index[..., None].expand_as(features), features.to(hidden.dtype)
        )
        places = x.candidate_places.gather(1, order)
        positions = F.pad(x.position_ids, (0, 1)).scatter_add(1, index, places)
        scale = None
        if self.training or self.selection.scale_at_test:
            ones = importance.new_ones(batch, tokens + 1)
            scale = ones.scatter(1, index, importance)[:, :tokens]
        return x._replace(
            features=(),
            image_features=None,
            low_tokens=None,
            candidates=None,
            candidate_places=None,
            picked_tokens=None,
            low_to_high=None,
            query_tokens=None,
            low_length=None,
            hidden=hidden[:, :tokens],
            position_ids=positions[:, :tokens],
            importance=scale,
            selection_loss=self.loss(picked, importance, shown) if self.training else None,
            shared=None,
        )

    def scores(self, x: Carry, high: Tensor) -> Tensor:
        """[B, H] of the high windows, high [B, H, D]; LOWEST for those that are not there."""
        selection = self.selection
        windows = high if selection.learn_windows else high.detach()
        if self.prior_norm is not None:
            windows = self.prior_norm(windows)
        windows = F.dropout(windows, selection.window_dropout, self.training)
        score = self.prior(windows)[..., 0]
        if self.low is not None:
            outputs = torch.cat(x.features, -1)
            if not selection.normalize:
                outputs = outputs / self.layers**0.5
            asked = self.low_scores(x, outputs)
            if self.query is not None:
                asked = self.asked(x, outputs, windows, asked)
            score = score + asked
        score = (score / selection.rescale + selection.offset).float()
        score = torch.where(x.candidates >= 0, score, LOWEST)
        lacking = max(0, x.picked_tokens.shape[1] - score.shape[1])
        assert lacking == 0, "there are fewer windows than picks"
        return score

    def low_scores(self, x: Carry, outputs: Tensor) -> Tensor:
        """[B, H] from outputs [B, t, F] of the tokens that show the low resolution."""
        selection = self.selection
        there = (x.low_tokens >= 0)[..., None]
        index = x.low_tokens.clamp(min=0)[..., None]
        low = torch.where(there, outputs.take_along_dim(index, 1), 0)
        if self.low_norm is not None:
            low = self.low_norm(low)
        if selection.normalize:
            low = low / low.shape[-1] ** 0.5
        scores = self.low(F.dropout(low, selection.scored_dropout, self.training))
        if not selection.four_scores:
            scores = scores.mean(-1, keepdim=True).expand_as(scores)
        return torch.einsum("bl,blh->bh", scores.flatten(1), x.low_to_high.to(scores.dtype))

    def asked(self, x: Carry, outputs: Tensor, windows: Tensor, score: Tensor) -> Tensor:
        """The scores [B, H] with those of the question's query."""
        root = windows.shape[-1] ** 0.5
        rows = torch.arange(len(outputs), device=outputs.device)
        query = self.query(outputs[rows, x.query_tokens])
        if self.selection.vector_query == "plain":
            return score + torch.einsum("bd,bhd->bh", query, windows) / root
        scale, bias, query = query.split((1, 1, query.shape[1] - 2), 1)
        score = score + torch.einsum("bd,bhd->bh", query, windows) / root
        return score * (scale / root) + bias / root

    def loss(self, picked: Tensor, importance: Tensor, shown: Tensor) -> Tensor:
        """The auxiliary loss of picks [B, K]; 0 where a batch has none."""
        selection = self.selection
        counted = shown.to(importance.dtype)
        count = counted.sum()
        each = counted.sum(1)
        means = (importance * counted).sum(1) / each.clamp(min=1)
        rows = (each > 0).to(means.dtype)
        if selection.loss_mean == "batch":
            far = ((importance * counted).sum() / count.clamp(min=1) - selection.target).abs()
            loss = far**selection.loss_power
        elif selection.loss_mean == "example":
            far = (means - selection.target).abs() ** selection.loss_power
            loss = (far * rows).sum() / rows.sum().clamp(min=1)
        else:
            mean = (means * rows).sum() / rows.sum().clamp(min=1)
            loss = (mean - selection.target).abs() ** selection.loss_power
        loss = loss * selection.loss_weight
        if selection.saturation_loss:
            beyond = (picked.abs() - SATURATED).clamp(min=0) ** 2
            beyond = torch.where(shown, beyond, 0)
            loss = loss + selection.saturation_loss * beyond.sum() / count.clamp(min=1)
        return torch.where(count > 0, loss, 0.0)


class SelectionCore(Core):
    """Attention in which picked tokens count by their importance."""

    def __init__(self, selection: SelectionConfig) -> None:
        self.scaling = selection.attention_scaling

    def plan(self, x: Carry, dtype: torch.dtype) -> Any:
        """(the plan of `Core`, factors of the values [B, 1, T, 1] or None)."""
        if x.importance is None:
            return super().plan(x, dtype), None
        if self.scaling is None:
            return super().plan(x, dtype), x.importance[:, None, :, None]
        seen = visible(x.document_ids, x.branch_ids, x.image_ids)[:, None]
        faint = (x.importance * self.scaling + 1 - self.scaling).log()[:, None, None]
        own = torch.eye(faint.shape[-1], dtype=torch.bool, device=faint.device)
        mask = torch.where(seen, torch.where(own, 0, faint), float("-inf")).to(dtype)
        return AttentionPlan(x.document_ids, x.branch_ids, x.image_ids, mask), None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, plan: Any, dropout_p: float) -> Tensor:
        """As in `Core`."""
        plan, scale = plan
        v = v if scale is None else v * scale.to(v.dtype)
        return super().__call__(q, k, v, plan, dropout_p)


def look_ahead(layers: Sequence[DecoderLayer], x: Carry, config: MolmoConfig) -> Carry:
    """x with `features`, the outputs [B, t, D] of the layers over the tokens up to the low resolution's end."""
    selection = config.selection
    if selection.scorer == "prior":
        return x
    first, end = selection.first_pass_layers or (0, 0)
    length = max(1, int(x.low_length))
    short = {name: getattr(x, name) for name in (*PER_TOKEN, "hidden")}
    short = {name: part[:, :length] for name, part in short.items() if part is not None}
    if x.image_ids is not None:  # a shorter row's high resolution is not there yet
        late = torch.arange(length, device=x.query_tokens.device) > x.query_tokens[:, None] + 1
        short["image_ids"] = short["image_ids"].masked_fill(late, 0)
    if not selection.learn_embedding:
        short["hidden"] = short["hidden"].detach()
    one = x._replace(**short, shared=None)
    features = []
    training = torch.is_grad_enabled() and layers[0].training
    for index, layer in enumerate(layers[: selection.scored_layers]):
        with torch.set_grad_enabled(training and first <= index < end):
            one = layer(one)
        features.append(one.hidden)
    return x._replace(features=tuple(features))


def _gathered(rows: Tensor, index: Tensor) -> Tensor:
    """rows [M, D] at index [B, H] -> [B, H, D], zero where the index is missing."""
    return torch.where((index >= 0)[..., None], rows[index.clamp(min=0)], 0)
