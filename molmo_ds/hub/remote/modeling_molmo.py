"""Molmo for transformers: the network of molmo_ds with the interface of a causal language model.

Shapes: B sequences, T tokens, S tokens with those of the cache, n crops of a sequence, P patches per crop, Q pooled
patches per crop, D width, E words of the head.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from molmo_ds.data.tokens import IMAGE_TOKENS
from molmo_ds.hub.remote.base_molmo import CACHE, CACHE_NAMES, MolmoModel
from molmo_ds.hub.remote.config_molmo import MolmoConfig, copy_code
from molmo_ds.hub.remote.last_position_molmo import LastPosition

PICTURES = ("images", "image_masks", "image_input_idx")


class MolmoForCausalLM(PreTrainedModel, GenerationMixin):
    """Molmo with its head."""

    config_class = MolmoConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block", "VisionBlock"]
    _supports_sdpa = True
    _supports_cache_class = True  # this and the next are asked by transformers 4
    _supports_static_cache = True
    _skip_keys_device_placement = list(CACHE_NAMES)

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__(config)
        self.model = MolmoModel(config.architecture())
        if config.architecture().text.num_experts:  # as the released MolmoE has it
            self.lm_head = self.model.transformer.ff_out
            del self.model.transformer.ff_out
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

    def get_input_embeddings(self) -> nn.Module:
        """Ids [B, T] to vectors [B, T, D]: the words of the head, and after them the image tokens."""
        return self.model.transformer.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another module in its place."""
        self.model.transformer.wte = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head if hasattr(self, "lm_head") else self.model.transformer.ff_out

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Put another module in its place."""
        place = self if hasattr(self, "lm_head") else self.model.transformer
        setattr(place, "lm_head" if place is self else "ff_out", value)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """Let the head answer with the ids below `new_num_tokens`, for tokens that were added to the tokenizer.

        Every id keeps its vector, those of image tokens too: what the first table gains, the second loses. New rows of
        the head are the mean of the others (or, without mean_resizing, drawn).

        Raises ValueError for fewer tokens than the model's own words.
        """
        embedding = self.get_input_embeddings()
        if new_num_tokens is None and pad_to_multiple_of is None:
            return embedding
        head = self.get_output_embeddings()
        words = len(head.weight) if new_num_tokens is None else new_num_tokens
        multiple = pad_to_multiple_of or 1
        words = -(-words // multiple) * multiple
        if words < self.config.vocab_size:
            raise ValueError(
                f"The model has {self.config.vocab_size} words; resize it to that many tokens at least, not {words}."
            )
        std = self.config.initializer_range
        with torch.no_grad():
            embedding.resize(words, std)
            old = head.weight.detach()
            missing = max(words - len(old), 0)
            new = torch.randn(missing, old.shape[1], device=old.device) * std
            if mean_resizing:
                new = old.float().mean(0).expand(missing, -1)
            table = torch.cat((old[:words], new.to(old.dtype)))
            head.weight = nn.Parameter(table, head.weight.requires_grad)
            head.out_features = words
        architecture = copy.deepcopy(self.config.molmo_ds)
        architecture["text"]["embedding_size"] = words
        architecture["text"]["additional_vocab_size"] = len(embedding.new_embedding)
        self.config.molmo_ds = architecture
        self.config.embedding_size = words
        return embedding

    def save_pretrained(self, save_directory: str | Path, *args: Any, **options: Any) -> None:
        """Save as transformers does, and the code that older versions leave out."""
        super().save_pretrained(save_directory, *args, **options)
        copy_code(save_directory)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        images: Tensor | None = None,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        cache: Any = None,
        **loss_kwargs: Any,  # by this name Trainer of 4.46 knows that num_items_in_batch is read
    ) -> Any:
        """Logits, and the loss with `labels` (-100 where nothing is learnt).

        Args:
            input_ids: int [B, T]; -1 is padding.
            attention_mask: [B, S], 0 on padding; S counts cached tokens too.
            images: float [B, n, P, patch * patch * 3], all -1 in crops that pad.
            image_masks: float [B, n, P].
            image_input_idx: int [B, n, Q], tokens to which pooled patches are added; below 0 = nowhere.
            inputs_embeds: [B, T, D] instead of input_ids; pictures are added to it.
            labels: int [B, T]; image tokens are not learnt, as in training, where nothing is asked to write them.
            num_items_in_batch: learnt tokens of all the steps whose gradients are added up, which Trainer counts.
            cache: past_key_values, as transformers calls them from 5.24 on.

        Raises ValueError for labels that the head has no word for.
        """
        out = self.model(
            input_ids,
            attention_mask,
            position_ids,
            images,
            image_masks,
            image_input_idx,
            _either(cache, past_key_values),
            inputs_embeds,
            use_cache,
            _either(output_attentions, self.config.output_attentions),
            _either(output_hidden_states, self.config.output_hidden_states),
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.get_output_embeddings()(out.last_hidden_state[:, kept])
        answer = CausalLMOutputWithPast(
            loss=None if labels is None else self._loss(logits, labels, num_items_in_batch),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            **{CACHE: getattr(out, CACHE)},
        )
        return answer.to_tuple() if return_dict is False else answer

    def _loss(self, logits: Tensor, labels: Tensor, items: int | Tensor | None) -> Tensor:
        first = self.config.vocab_size
        image = (labels >= first) & (labels < first + len(IMAGE_TOKENS))
        labels = labels.masked_fill(image, -100)[:, 1:].flatten()
        if labels.numel() and int(labels.max()) >= logits.shape[-1]:
            raise ValueError(
                f"A label is {int(labels.max())} and the head has {logits.shape[-1]} words; after adding tokens call"
                " model.resize_token_embeddings(len(tokenizer))."
            )
        logits = logits[:, :-1].flatten(0, 1).float()
        if items is None:
            return F.cross_entropy(logits, labels, ignore_index=-100)
        return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / items

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = True,
        logits_to_keep: int | None = None,
        images: Tensor | None = None,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: Any = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Only new tokens, once there is a cache; pictures go in with the prompt."""
        kept = _either(cache, past_key_values)
        seen = int(kept.get_seq_length()) if kept is not None else 0
        inputs = {
            "attention_mask": attention_mask,
            CACHE: kept,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep or 0,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }
        if seen:
            # a prompt that was given as vectors has no ids
            prompt = inputs_embeds.shape[1] if input_ids.shape[1] <= seen else 0
            return inputs | {"input_ids": input_ids[:, seen - prompt :]}
        inputs |= dict(zip(PICTURES, (images, image_masks, image_input_idx)))
        if inputs_embeds is None:
            return inputs | {"input_ids": input_ids}
        return inputs | {"inputs_embeds": inputs_embeds}

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        **options: Any,
    ) -> Any:
        """Generate as transformers does. A row ends at the model's last position; a warning counts such rows.

        Raises ValueError for a prompt that leaves no room for an answer.
        """
        ids = options.get("input_ids") if inputs is None else inputs
        embeds = options.get("inputs_embeds")
        if ids is None and embeds is None:
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
        if mask is None:
            mask = torch.ones_like(embeds[..., 0]) if ids is None else ids != -1
        width = 0 if ids is None else ids.shape[1]  # vectors are not part of what comes out
        last = LastPosition(mask.sum(1).long(), width, self.config.max_position_embeddings)
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
        tokens = ids.shape[1]
        order = (torch.arange(tokens, device=ids.device) - pad[:, None]) % tokens
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


def _either(asked: Any, default: Any) -> Any:
    return default if asked is None else asked
