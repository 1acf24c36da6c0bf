"""Greedy decoding and beam search give the reference's tokens and scores."""

import re

import pytest
import torch
from golden_files import MISSING, folder, listed, model_kinds, read_json
from golden_models import load_model, read_batch

from molmo_ds.infer.generate import Options, generate

STEPS = re.compile(r"(greedy|beam(\d+))_max_steps")


def cases() -> list[tuple[str, str, str]]:
    """(model, batch, way to decode) of everything that was generated."""
    out = []
    for kind in model_kinds():
        meta = f"A_model/{kind}/meta.json"
        for name in listed(meta, "batches") if (folder() / meta).is_file() else ():
            settings = (
                {}
                if name.startswith(MISSING)
                else read_json(meta)["batches"][name].get("generate", {})
            )
            out += [
                (kind, name, found.group(1)) for key in settings if (found := STEPS.fullmatch(key))
            ]
    return out or [(f"{MISSING}A_model/*/meta.json:batches.*.generate", "", "")]


@pytest.mark.parametrize(("kind", "name", "way"), cases())
def test_generation(kind: str, name: str, way: str) -> None:
    batch, golden, meta = read_batch(kind, name)
    settings = meta["generate"]
    beams = 1 if way == "greedy" else int(way.removeprefix("beam"))
    options = Options(max_new_tokens=settings[f"{way}_max_steps"], beams=beams)
    out = generate(load_model(kind), batch, settings["eos"], options)
    ids = golden[f"out.{way}_token_ids"]
    padded = torch.nn.functional.pad(
        out.token_ids, (0, ids.shape[-1] - out.token_ids.shape[-1]), value=out.eos
    )
    assert torch.equal(padded, ids)
    torch.testing.assert_close(out.scores, golden[f"out.{way}_scores"], atol=1e-4, rtol=0)
