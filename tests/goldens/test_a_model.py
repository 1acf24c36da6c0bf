"""Our network against the reference's activations, losses and gradients."""

import pytest
import torch
from golden_checks import Taps, check_gradient, check_logits, close, close_residual, gradients_of
from golden_files import listed, model_kinds, read_json, read_tensors
from golden_models import load_model, read_batch, read_config, real_crops, to_reference
from torch.nn import functional as F

CASES = [
    (kind, batch)
    for kind in model_kinds()
    for batch in listed(f"A_model/{kind}/meta.json", "batches")
]


@pytest.mark.parametrize(("kind", "name"), CASES)
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
    if "out.logits_full_example0_last16" in golden:
        last = golden["out.logits_full_example0_last16"]
        valid = meta["valid_tokens"][0]
        close(logits[0, valid - len(last) : valid], last)

    if "out.embeds_plus_image" in golden:
        close_residual(taps.out["embed"].hidden[seen], golden["out.embeds_plus_image"][seen])
        close_residual(taps.out["layers.0"].hidden[seen], golden["out.hidden_before_block_1"][seen])
        images = read_tensors(f"A_model/{kind}/images.safetensors")["in.images"]
        real = real_crops(images)
        projected = taps.out["connector"].image_features.view(
            *golden["in.image_input_idx"][real].shape, -1
        )
        close_residual(projected, golden["out.image_features_projected"][real])
        features = taps.out[tower].features
        features = torch.cat([features[i] for i in model.connector.order], -1)[
            :, -images.shape[2] :
        ]
        close(
            features[real.nonzero()[:, 0] == 1], golden["out.vit_features_concat_example1"][real[1]]
        )


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_losses_and_gradients(kind: str, name: str) -> None:
    batch, golden, meta = read_batch(kind, name)
    if "out.ce_per_token_weighted" not in golden:
        # a prompt has nothing to learn
        assert not meta.get("grads") and float(batch.loss_weights.sum()) == 0
        return
    model = load_model(kind, z_loss=read_json(f"A_model/{kind}/meta.json")["z_loss_scale"])
    weights, seen = batch.loss_weights, batch.document_ids != 0
    total = meta["loss_weight_sum"]
    assert float(weights.sum()) == pytest.approx(total, rel=1e-6)

    with torch.no_grad():
        logits = model.logits(batch)
        # image tokens have no logit, and no weight
        labels = torch.where(weights > 0, batch.labels, 0)
        ce = (
            F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(
                weights
            )
            * weights
        )
        z = model.head.z_loss * logits.logsumexp(-1) ** 2 * weights
        right = (logits.argmax(-1) == batch.labels) * weights
    close(ce[seen], golden["out.ce_per_token_weighted"][seen])
    close(z[seen], golden["out.z_per_token_weighted"][seen])
    close(right[seen], golden["out.accuracy_per_token_weighted"][seen])

    sums = model(batch.replace(loss_weights=weights / total))
    for ours, key in zip(sums, ("ce_loss", "z_loss", "accuracy")):
        assert ours.item() == pytest.approx(meta[key], rel=5e-6, abs=1e-9)
    (sums[0] + sums[1]).backward()
    untouched = {n for n, p in model.named_parameters() if p.grad is None}
    ours = gradients_of(model)
    dead = to_reference(
        kind, {n: torch.full_like(g, float(n in untouched)) for n, g in ours.items()}
    )
    grads = to_reference(kind, ours)
    assert set(grads) == set(meta["grads"])
    for key, golden_grad in meta["grads"].items():
        assert bool(dead[key].all()) == (golden_grad is None), key
        check_gradient(key, grads[key], golden_grad)


@pytest.mark.parametrize("kind", model_kinds())
def test_the_parameters_are_all_there(kind: str) -> None:
    meta = read_json(f"A_model/{kind}/meta.json")
    model = load_model(kind)
    assert sum(p.numel() for p in model.parameters()) == meta["n_params"]
    assert read_config(kind).text.hidden_size == meta["model_config"]["d_model"]
