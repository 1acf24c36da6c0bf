"""Our network against the reference's Molmo2: activations, losses, gradients, answers."""

import re

import pytest
import torch
from golden_checks import Taps, check_gradient, check_logits, close, close_residual, gradients_of
from golden_files import read_json
from molmo2_models import (
    PART,
    files,
    kinds,
    load_model,
    per_token_loss,
    read_batch,
    read_config,
    read_prompts,
    to_reference,
)

from molmo_ds.infer.generate import Options, generate

BATCHES = files("batch")


@pytest.mark.parametrize("kind", kinds())
def test_the_parameters_are_all_there(kind: str) -> None:
    meta = read_json(f"{PART}/{kind}/meta.json")
    assert sum(p.numel() for p in load_model(kind).parameters()) == meta["n_params"]


@pytest.mark.parametrize(("kind", "name"), BATCHES)
def test_activations_and_logits(kind: str, name: str) -> None:
    batch, golden, meta = read_batch(kind, name)
    seen = batch.document_ids != 0
    assert seen.sum(1).tolist() == meta["valid_tokens"]
    model = load_model(kind)
    tower = f"vision.layers.{len(model.vision.layers) - 1}"
    taps = Taps(model, tower, "connector", "embed", "layers.0")
    with torch.no_grad():
        hidden = model.hidden(batch)
        logits = model.head.lm_head(hidden)
    close(hidden[seen], golden["out.last_hidden_after_ln_f"][seen])
    check_logits(logits, golden, seen)
    close_residual(taps.out["connector"].image_features, golden["out.image_features"])
    if "out.embeds_plus_image" in golden:
        close_residual(taps.out["embed"].hidden[seen], golden["out.embeds_plus_image"][seen])
        close_residual(taps.out["layers.0"].hidden[seen], golden["out.hidden_before_block_1"][seen])
    if "out.vit_features_concat_example1" in golden:
        features = taps.out[tower].features
        whole = torch.cat([features[i] for i in model.connector.order], -1)
        crops = len(whole) // len(batch.input_ids)
        close(whole[crops : 2 * crops], golden["out.vit_features_concat_example1"])


@pytest.mark.parametrize(("kind", "name"), BATCHES)
def test_losses_and_gradients(kind: str, name: str) -> None:
    batch, golden, meta = read_batch(kind, name)
    model = load_model(kind, z_loss=read_json(f"{PART}/{kind}/meta.json")["z_loss_scale"])
    seen = batch.document_ids != 0
    total = meta["loss_weight_sum"]
    assert float(batch.loss_weights.sum()) == pytest.approx(total, rel=1e-6)
    with torch.no_grad():
        ce, z = per_token_loss(model, batch, model.logits(batch))
    close(ce[seen], golden["out.ce_per_token_weighted"][seen])
    close(z[seen], golden["out.z_per_token_weighted"][seen])
    sums = model(batch.reweighted(batch.loss_weights / total))
    for ours, key in zip(sums, ("ce_loss", "z_loss")):
        assert ours.item() == pytest.approx(meta[key], rel=2e-5)
    if "grads" not in meta:
        return
    (sums[0] + sums[1]).backward()
    ours = gradients_of(model)
    if read_config(kind).text.tie_word_embeddings:
        ours["head.lm_head.weight"] = ours["embed.embedding"]
    grads = to_reference(kind, ours)
    for key, want in meta["grads"].items():
        check_gradient(key, grads[key], want)


WAY = re.compile(r"out\.(greedy|beam(\d+))_token_ids")


@pytest.mark.parametrize(("kind", "name"), files("generate"))
def test_answers(kind: str, name: str) -> None:
    prompts, golden = read_prompts(kind, name)
    model = load_model(kind)
    ways = [found for key in golden if (found := WAY.fullmatch(key))]
    assert ways
    for way in ways:
        ids = golden[way.group(0)]
        options = Options(max_new_tokens=ids.shape[-1], beams=int(way.group(2) or 1))
        # the prompts begin with the end of a text
        out = generate(model, prompts, int(prompts.input_ids[0, 0]), options)
        lacking = ids.shape[-1] - out.token_ids.shape[-1]
        padded = torch.nn.functional.pad(out.token_ids, (0, lacking), value=out.eos)
        assert torch.equal(padded, ids), way.group(1)
        scores = golden[f"out.{way.group(1)}_scores"]
        torch.testing.assert_close(out.scores, scores, atol=1e-4, rtol=0)
