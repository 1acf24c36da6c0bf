"""Exported folders of tiny models, and what this package itself answers for them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molmo_ds.architecture import ImageConfig, MolmoConfig, TextConfig, VisionConfig
from molmo_ds.config import DataConfig, RunConfig
from molmo_ds.data.order.packing import collate
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.data.tokens import train_tokenizer
from molmo_ds.hub.export import to_hub
from molmo_ds.infer.generate import Options, generate
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing.random_weights import weights_folder

QUESTION = "Describe this picture."
WORDS = "Describe this picture. User: what is it? Assistant: a red boat, two blue birds."
LIKE_OTHERS = {  # what tokenizers of language models say: Qwen2's the first, OLMo's the second
    "additional_special_tokens": ["<|endoftext|>"],
    "clean_up_tokenization_spaces": True,
}
TEXTS: dict[str, dict[str, Any]] = {  # what each family changes
    "qwen2": {},
    "llama": {"attention_bias": False, "rms_norm_eps": 1e-5},
    "olmo2": {
        "attention_bias": False,
        "qk_norm": True,
        "norm_after": True,
        "num_key_value_heads": 4,
        "vocab_size": 500,
    },
    "olmoe": {
        "attention_bias": False,
        "qk_norm": True,
        "num_key_value_heads": 4,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "intermediate_size": 16,
        "vocab_size": 500,
    },
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A model, and its folder."""

    folder: Path
    config: MolmoConfig
    model: Molmo
    weights: Path  # the folder that it was exported from
    words: Path  # the tokenizer that it was exported with

    @property
    def builder(self) -> SampleBuilder:
        """What training makes prompts with."""
        data = DataConfig(tokenizer=str(self.words), sequence_length=512)
        return SampleBuilder(RunConfig(model=self.config, data=data))

    def answers(self, picture: np.ndarray) -> dict[str, Any]:
        """What WANT.pt of usual_calls.py holds."""
        prompt = self.builder.prompt([picture], QUESTION)
        batch = collate([[prompt]], len(prompt.input_ids))
        with torch.no_grad():
            logits = self.model.logits(batch)
        end = 299
        return {
            "picture": picture,
            "logits": logits,
            "greedy": generate(self.model, batch, end, Options(max_new_tokens=8)).ids(0),
            "beams": generate(self.model, batch, end, Options(max_new_tokens=5, beams=3)).ids(0),
        }


def config_of(kind: str, vision: VisionConfig | None = None, **text: Any) -> MolmoConfig:
    """A tiny model of a family, with other fields of TextConfig; by default its tower has 6 x 6 patches per crop."""
    fields = {
        "model_type": kind,
        "vocab_size": 512,
        "embedding_size": 512,
        "additional_vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_theta": 1e4,
    }
    tower = VisionConfig(
        image_size=84,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        feature_layers=(-1, -2),
    )
    images = ImageConfig(max_crops=4, overlap_margins=(2, 2), exact=True)
    return MolmoConfig(
        text=TextConfig(**fields | TEXTS[kind] | text), vision=vision or tower, images=images
    )


def export(root: Path, config: MolmoConfig, state: dict[str, Tensor]) -> Exported:
    """A model with these weights, exported under `root`."""
    words = root / "words"
    if not words.is_dir():
        train_tokenizer([WORDS] * 3, 300, words)
        settings = words / "tokenizer_config.json"
        values = json.loads(settings.read_text()) | LIKE_OTHERS
        settings.write_text(json.dumps(values))
    name = config.text.model_type
    weights = weights_folder(root / f"ours_{name}", config, state, words)
    to_hub(weights, root / name)
    model = Molmo(config)
    model.load_state_dict(state)
    return Exported(
        folder=root / name, config=config, model=model.eval(), weights=weights, words=words
    )


def picture(width: int = 160, height: int = 70) -> np.ndarray:
    """Random colours, uint8 [height, width, 3]."""
    source = torch.Generator().manual_seed(width)
    return torch.randint(0, 256, (height, width, 3), generator=source, dtype=torch.uint8).numpy()
