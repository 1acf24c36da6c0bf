"""Greedy decoding and beam search give the reference's tokens and scores."""

from dataclasses import replace

import pytest
import torch
from golden_files import folder, model_kinds, read_json
from golden_models import load_model, read_batch

from molmo_ds.model.generate import Options, generate


def cases() -> list[tuple[str, str]]:
    """(model, batch) with generated tokens; a model without any meta.json fails in test_a_model."""
    metas = [
        f"A_model/{kind}/meta.json" for kind in model_kinds() if (folder() / f"A_model/{kind}/meta.json").is_file()
    ]
    listed = [(meta.split("/")[1], name, batch) for meta in metas for name, batch in read_json(meta)["batches"].items()]
    return [(kind, name) for kind, name, batch in listed if "generate" in batch] or [("d_qwen2", "inference")]


@pytest.mark.parametrize(("kind", "name"), cases())
def test_generation(goldens, kind: str, name: str) -> None:
    batch, golden, meta = read_batch(kind, name)
    settings, model = meta["generate"], load_model(kind)
    greedy = Options(max_new_tokens=settings["greedy_max_steps"])
    for options, key in (
        (greedy, "greedy"),
        (replace(greedy, max_new_tokens=settings["beam3_max_steps"], beams=3), "beam3"),
    ):
        out = generate(model, batch, settings["eos"], options)
        ids = golden[f"out.{key}_token_ids"]
        padded = torch.nn.functional.pad(out.token_ids, (0, ids.shape[-1] - out.token_ids.shape[-1]), value=out.eos)
        assert torch.equal(padded, ids)
        torch.testing.assert_close(out.scores, golden[f"out.{key}_scores"], atol=1e-4, rtol=0)
