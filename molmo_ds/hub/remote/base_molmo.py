"""The network below the head, which TRL and others call by itself: ids and pictures to hidden states.

Shapes: B sequences, T tokens, S tokens with those of the cache, n crops of a sequence, N real crops,
P patches per crop, Q pooled patches per crop, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Carry, Shared, windows_of
from molmo_ds.hub.remote.attention_molmo import Plan, causal_mask
from molmo_ds.hub.remote.network_molmo import VisionBlock, WordEmbedding, backbone, block
from molmo_ds.model.molmo import Molmo
from molmo_ds.ops.splice import splice

# what transformers calls the cache: that before 5.24, and the other from there on
CACHE_NAMES = ("past_key_values", "cache")
CACHE = CACHE_NAMES["cache" in BaseModelOutputWithPast.__dataclass_fields__]


class MolmoModel(nn.Module):
    """`transformer`, which also holds the head of dense models, and `vision_backbone`."""

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__()
        network = Molmo(config)
        self.gradient_checkpointing = (
            False  # which transformers sets, with _gradient_checkpointing_func
        )
        self.pooling_size = config.connector.pooling_size
        self.vision_backbone = backbone(network)
        self.transformer = nn.Module()
        self.transformer.wte = WordEmbedding.of(network.embed, {})
        self.transformer.blocks = nn.ModuleList(
            block(layer, i, config.text) for i, layer in enumerate(network.layers)
        )
        self.transformer.ln_f = network.head.norm
        self.transformer.ff_out = network.head.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        images: Tensor | None = None,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPast:
        """`last_hidden_state` [B, T, D], for the head; the arguments are those of MolmoForCausalLM."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give the model either input_ids or inputs_embeds.")
        if use_cache and cache is None:
            cache = DynamicCache()
        seen = int(cache.get_seq_length()) if cache is not None else 0
        given = input_ids if inputs_embeds is None else inputs_embeds
        if attention_mask is None:
            there = torch.ones_like(given[..., 0]) if input_ids is None else input_ids != -1
            attention_mask = F.pad(there.long(), (seen, 0), value=1)
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, seen:]
        if inputs_embeds is None:
            inputs_embeds = self.transformer.wte(input_ids.clamp(min=0))
        hidden = self._with_pictures(inputs_embeds, images, image_masks, image_input_idx)
        plan = Plan(
            mask=causal_mask(attention_mask, hidden.shape[1], seen),
            cache=cache if use_cache or seen else None,
            places=torch.arange(seen, seen + hidden.shape[1], device=hidden.device),
            weights=[] if output_attentions else None,
        )
        states = self._decode(hidden, position_ids, plan)
        return BaseModelOutputWithPast(
            last_hidden_state=states[-1],
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(plan.weights) if output_attentions else None,
            **{CACHE: plan.cache},
        )

    def features(self, images: Tensor, masks: Tensor) -> Tensor:
        """images [N, P, patch * patch * 3], masks [N, P] -> [N * Q, D]."""
        tower = self.vision_backbone.image_vit
        windows = windows_of(len(images), tower.grid, self.pooling_size, images.device)
        x = tower(Carry(images=images, image_masks=masks, windows=windows))
        for layer in tower.transformer.resblocks:
            x = self._call(layer, x)
        return self.vision_backbone(x).image_features

    def _decode(self, hidden: Tensor, position_ids: Tensor, plan: Plan) -> list[Tensor]:
        """The hidden states [B, T, D] before each layer, and after the last one's norm."""
        tables = self.transformer.blocks[0].rotary.tables(position_ids)
        x = Carry(hidden=hidden, shared=Shared(plan, tables))
        states = []
        # a device map moves x along: each layer is called
        for layer in self.transformer.blocks:
            states.append(x.hidden)
            x = self._call(layer, x)
        return [*states, self.transformer.ln_f(x.hidden)]

    def _with_pictures(
        self, hidden: Tensor, images: Tensor | None, masks: Tensor | None, places: Tensor | None
    ) -> Tensor:
        """[B, T, D] with the pictures' features added."""
        if images is None or places is None:
            return hidden
        real = (places >= 0).flatten(2).any(-1)  # crops that only pad a batch
        if not real.any():
            return hidden
        masks = torch.ones(images.shape[:3], device=images.device) if masks is None else masks
        features = self.features(images[real], masks[real].float())
        start = torch.arange(len(hidden), device=places.device)[:, None, None] * hidden.shape[1]
        positions = torch.where(places >= 0, places + start, -1)[real].flatten().long()
        tokens = torch.arange(hidden.shape[:2].numel(), device=hidden.device)
        return splice(
            tokens.view(hidden.shape[:2]),
            hidden.flatten(0, 1),
            hidden[0, :1],
            features.to(hidden),
            positions.to(hidden.device),
        )

    def _call(self, layer: nn.Module, x: Carry) -> Carry:
        """layer(x), computed again in the backward pass where transformers says so."""
        if not (self.gradient_checkpointing and self.training) or x.hidden is None:
            return layer(x)

        def hidden_of(hidden: Tensor) -> Tensor:
            """One tensor in and one out, as transformers' function wants it."""
            out = layer(x._replace(hidden=hidden))
            return out.features[-1] if out.hidden is None else out.hidden

        hidden = self._gradient_checkpointing_func(hidden_of, x.hidden)
        if isinstance(layer, VisionBlock):
            return layer.passed_on(x, hidden)
        return x._replace(hidden=hidden)
