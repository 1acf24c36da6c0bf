"""The rename tables name what the reference's converters and transformers name."""

from dataclasses import replace

import pytest
from golden_files import MISSING, listed, read_json

from molmo_ds.architecture import MolmoConfig, TextConfig, VisionConfig
from molmo_ds.model import families
from molmo_ds.model.families import molmo_names
from molmo_ds.model.families.table import Table

EVIDENCE = listed("A_model/conversion.json", "evidence")
DROPPED = ("post_layernorm.", "head.", "layernorm.", "embeddings.mask_token")
TEXT = TextConfig(num_hidden_layers=1, attention_bias=False)
KINDS = {
    "qwen2": replace(TEXT, attention_bias=True),
    "llama": TEXT,
    "olmo2": replace(TEXT, qk_norm=True, norm_after=True),
    "olmoe": replace(TEXT, qk_norm=True, num_experts=4, num_experts_per_tok=2),
}


def theirs(table: Table) -> set[str]:
    return {key for rule in table for key in rule.theirs}


@pytest.mark.parametrize("name", [n for n in EVIDENCE if n.startswith(("llm_", MISSING))])
def test_text(name: str) -> None:
    evidence = read_json("A_model/conversion.json")["evidence"][name]
    text = KINDS[name.split("_")[1]]
    keys = set(evidence["hf_state_keys_layer0"])
    assert theirs(families.decoder(name.split("_")[1]).rename_table(text, keys)) == keys
    separate = "transformer.blocks.0.q_proj.weight" in evidence["ref_keys_layer0"]
    table = molmo_names.reference(MolmoConfig(text=text), "llama" if separate else None)
    assert {key for key in theirs(table) if key.startswith("transformer.")} == set(
        evidence["ref_keys_layer0"]
    )


@pytest.mark.parametrize("name", [n for n in EVIDENCE if n.startswith(("vit_", MISSING))])
def test_vision(name: str) -> None:
    evidence = read_json("A_model/conversion.json")["evidence"][name]
    kind = {"openai": "clip", "siglip": "siglip", "dino": "dinov2"}[name.split("_")[1]]
    sample = set(evidence["hf_state_keys_sample"])
    vision = VisionConfig(model_type=kind, num_hidden_layers=1)
    table = theirs(families.tower(kind).rename_table(vision, sample))
    assert table <= sample
    assert all(key.startswith(DROPPED) for key in sample - table)
