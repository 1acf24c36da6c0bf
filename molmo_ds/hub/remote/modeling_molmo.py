"""Molmo for transformers: the network of molmo_ds with the interface of a causal language model.

Shapes: B sequences, T tokens, n crops of a sequence, P patches per crop, Q pooled patches per crop, D width.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.modeling_outputs import CausalLMOutputWithPast

from molmo_ds.batch import windows_of
from molmo_ds.hub.remote.config_molmo import MolmoConfig
from molmo_ds.model.carry import Carry
from molmo_ds.model.decoder import Core
from molmo_ds.model.families import molmo_names
from molmo_ds.model.families.table import Rule
from molmo_ds.model.molmo import Molmo

PICTURES = ("images", "image_masks", "image_input_idx")


class Convert(ConversionOps):
    """One rule of a rename table, run by transformers while it loads or saves."""

    def __init__(self, rule: Rule, forward: bool) -> None:
        self.rule = rule
        self.forward = forward

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **_: Any,
    ) -> dict[str, Tensor]:
        """Patterns here are whole names."""
        tensors = [input_dict[pattern] for pattern in source_patterns]
        tensors = [t[0] if isinstance(t, list) else t for t in tensors]
        form = self.rule.form
        out = form.to_ours(tensors) if self.forward else form.to_theirs(tensors)
        return {pattern: t.contiguous() for pattern, t in zip(target_patterns, out)}

    @property
    def reverse_op(self) -> "Convert":
        return Convert(self.rule, not self.forward)


class CachedCore(Core):
    """Attention of one layer with transformers' cache."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.mask: Tensor | None = None  # bool [B, 1, T, S], set for the time of a forward pass
        self.cache: Any = None

    def plan(self, x: Carry, dtype: torch.dtype) -> None:
        """Nothing: the mask is made once for all layers."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, plan: Any, dropout_p: float) -> Tensor:
        """The attention of `Core`, with the cache."""
        if self.cache is not None:
            k, v = self.cache.update(k, v, self.index)
        # static caches have room to spare
        mask = F.pad(self.mask.to(q.device), (0, k.shape[2] - self.mask.shape[3]))
        return F.scaled_dot_product_attention(
            q, k, v, mask, dropout_p, enable_gqa=q.shape[1] != k.shape[1]
        )


class LastPosition(StoppingCriteria):
    """Ends each row at the last position that the model knows; `lengths` [B] are the tokens of the prompts."""

    def __init__(self, lengths: Tensor, width: int, known: int) -> None:
        self.room = known - lengths  # new tokens of each row
        self.width = width  # of the prompts, padding included
        self.known = known
        if int(self.room.min()) < 1:
            longest = int(lengths.max())
            raise ValueError(
                f"The prompt has {longest} tokens and the model knows {known} positions; make it shorter."
            )

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """bool [rows]: the beams or samples of a prompt lie one after the other."""
        times = len(input_ids) // len(self.room)
        return (
            input_ids.shape[1] - self.width >= self.room.to(input_ids.device)
        ).repeat_interleave(times)

    def warn(self, sequences: Tensor, ends: set[int]) -> None:
        """Say how many answers [B * times, T] were ended here, by none of the tokens `ends`."""
        times = len(sequences) // len(self.room)
        room = self.room.repeat_interleave(times).tolist()
        answers = [
            row[self.width : self.width + places].tolist() for row, places in zip(sequences, room)
        ]
        cut = sum(
            len(answer) == places and not ends & set(answer)
            for answer, places in zip(answers, room)
        )
        if cut:
            warnings.warn(
                f"{cut} of {len(answers)} answers ended at position {self.known}, the last that the model knows: prompt"
                " and answer share these positions.",
                stacklevel=3,
            )


class MolmoForCausalLM(PreTrainedModel, GenerationMixin):
    """Molmo with its head."""

    config_class = MolmoConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules = ["DecoderLayer", "VisionLayer"]
    _supports_sdpa = True
    _supports_cache_class = True
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__(config)
        self.model = Molmo(config.architecture())
        for i, layer in enumerate(self.model.layers):
            layer.self_attn.core = CachedCore(i)
        register_checkpoint_conversion_mapping(
            type(self).__name__, conversions(config), overwrite=True
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # transformers calls this for what a checkpoint lacks; ours are whole
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=self.config.initializer_range)
            else:
                nn.init.ones_(parameter)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.model.head.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        images: Tensor | None = None,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss with `labels` (-100 where nothing is learnt).

        Args:
            input_ids: int [B, T]; -1 is padding.
            attention_mask: [B, S], 0 on padding; S counts cached tokens too.
            images: float [B, n, P, patch * patch * 3], all -1 in crops that pad.
            image_masks: float [B, n, P].
            image_input_idx: int [B, n, Q], tokens to which pooled patches are added; below 0 = nowhere.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if attention_mask is None:
            attention_mask = F.pad((input_ids != -1).long(), (seen, 0), value=1)
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, seen:]
        hidden = self._embed(input_ids.clamp(min=0), images, image_masks, image_input_idx)
        cache = past_key_values if use_cache or seen else None
        hidden = self._decode(
            hidden, position_ids, _mask(attention_mask, hidden.shape[1], seen), cache
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.head.logits(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def _decode(self, hidden: Tensor, position_ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
        # a device map moves it along: each layer is called
        x = Carry(position_ids=position_ids, hidden=hidden)
        try:
            for layer in self.model.layers:
                layer.self_attn.core.mask = mask
                layer.self_attn.core.cache = cache
                x = layer(x)
        finally:
            for layer in self.model.layers:
                layer.self_attn.core.mask = layer.self_attn.core.cache = None
        return x.hidden

    def _embed(
        self, ids: Tensor, images: Tensor | None, masks: Tensor | None, places: Tensor | None
    ) -> Tensor:
        model = self.model
        features = model.embed.new_embedding.new_zeros(1, self.config.hidden_size)
        positions = torch.full((1,), -1, device=ids.device)
        if images is not None and places is not None:
            real = (places >= 0).flatten(2).any(-1)  # crops that only pad a batch
            start = torch.arange(len(ids), device=ids.device)[:, None, None] * ids.shape[1]
            positions = torch.where(places >= 0, places + start, -1)[real].flatten().long()
            masks = torch.ones(images.shape[:3], device=ids.device) if masks is None else masks
            if real.any():
                features = self._features(images[real], masks[real].float())
        features = features.to(model.embed.embedding.dtype)
        return model.embed(
            Carry(input_ids=ids, image_features=features, image_positions=positions)
        ).hidden

    def _features(self, images: Tensor, masks: Tensor) -> Tensor:
        """images [N, P, patch * patch * 3], masks [N, P] -> [N * Q, D], Q windows of each crop."""
        model = self.model
        grid = model.vision.embeddings.grid
        windows = windows_of(len(images), grid, model.config.connector.pooling_size, images.device)
        x = Carry(images=images, image_masks=masks, windows=windows)
        for layer in (model.vision.embeddings, *model.vision.layers, model.connector):
            x = layer(x)
        return x.image_features

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        use_cache: bool = True,
        logits_to_keep: int | None = None,
        images: Tensor | None = None,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Only new tokens, once there is a cache; pictures go in with the prompt."""
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        inputs = {
            "input_ids": input_ids[:, seen:],
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep or 0,
        }
        return (
            inputs if seen else inputs | dict(zip(PICTURES, (images, image_masks, image_input_idx)))
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        **options: Any,
    ) -> Any:
        """Generate as transformers does; a row ends at the last position that the model knows, which a warning counts.

        Raises ValueError for a prompt that leaves no room for an answer.
        """
        ids = options.get("input_ids") if inputs is None else inputs
        if ids is None:
            return super().generate(
                inputs, generation_config, logits_processor, stopping_criteria, **options
            )
        chosen = self.generation_config if generation_config is None else generation_config
        asked = {
            name: options.get(name, getattr(chosen, name, None)) for name in ("top_p", "num_beams")
        }
        if asked["top_p"] is not None and not 0 < asked["top_p"] <= 1:
            raise ValueError(f"top_p lies above 0 and up to 1, and is {asked['top_p']}.")
        if (asked["num_beams"] or 1) > self.config.embedding_size:
            raise ValueError(
                f"{asked['num_beams']} beams are more than the {self.config.embedding_size} words."
            )
        mask = options.get("attention_mask")
        lengths = (ids != -1).sum(1) if mask is None else mask.sum(1)
        last = LastPosition(lengths, ids.shape[1], self.config.max_position_embeddings)
        criteria = StoppingCriteriaList([*(stopping_criteria or []), last])
        out = super().generate(inputs, generation_config, logits_processor, criteria, **options)
        names = [
            options.get(name, getattr(chosen, name, None))
            for name in ("eos_token_id", "pad_token_id")
        ]
        ends = {token for name in names for token in (name if isinstance(name, list) else [name])}
        last.warn(out if isinstance(out, Tensor) else out.sequences, ends)
        return out

    @torch.no_grad()
    def generate_from_batch(
        self,
        batch: dict[str, Tensor],
        generation_config: GenerationConfig | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """The released models' way to generate: prompt and answer ids [B, T + new] for a batch as `process` makes it.

        Args:
            batch: input_ids [B, T], -1 where padded on the right, and images, image_masks, image_input_idx [B, n, ...].
            attention_mask: [B, T], 0 on padding; by default the batch's own, or what input_ids says.
            options: of `generate`, such as `tokenizer` (for stop_strings) and `use_cache`.
        """
        ids = batch["input_ids"].long()
        mask = batch.get("attention_mask") if attention_mask is None else attention_mask
        mask = (ids != -1) if mask is None else mask.bool()
        # padding moves to the left, where answers do not meet it
        pad = (~mask).sum(1) * ~mask[:, -1]
        order = (torch.arange(ids.shape[1], device=ids.device) - pad[:, None]) % ids.shape[1]
        pictures = {name: batch[name] for name in PICTURES if batch.get(name) is not None}
        if "image_input_idx" in pictures:
            places = pictures["image_input_idx"]
            pictures["image_input_idx"] = torch.where(
                places >= 0, places + pad[:, None, None], places
            )
        return self.generate(
            ids.gather(1, order).clamp(min=0),
            generation_config,
            attention_mask=mask.gather(1, order).long(),
            **pictures,
            **options,
        )


def conversions(config: MolmoConfig) -> list[WeightConverter]:
    """Released keys to the network's names, for transformers to load and (reversed) to save."""
    return [
        WeightConverter(
            ["^" + key.replace(".", r"\.") for key in rule.theirs],
            ["^model." + name.replace(".", r"\.") for name in rule.ours],
            [Convert(rule, True)],
        )
        for rule in molmo_names.released(config.architecture())
    ]


def _mask(attention_mask: Tensor, tokens: int, seen: int) -> Tensor:
    """bool [B, 1, T, S]: causal, no padding seen; padding sees itself."""
    query = torch.arange(tokens, device=attention_mask.device)[:, None] + seen
    key = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (((query >= key) & attention_mask[:, None].bool()) | (query == key))[:, None]
