"""HeMolmo against the reference: picks, logits, losses and gradients of its variants."""

import pytest
import torch
from golden_checks import check_gradient, gradients_of
from golden_files import MISSING, OURS, folder, listed, read_json, read_tensors
from golden_models import column_step
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.batch import Sample, SelectionBatch, SelectionSample
from molmo_ds.data.order.selected import collate_selected
from molmo_ds.data.sample.pictures.image_ids import image_ids
from molmo_ds.data.sample.selected import selected
from molmo_ds.infer.selected import answer
from molmo_ds.model.families import molmo, molmo_names
from molmo_ds.model.molmo import Molmo
from molmo_ds.weights import rename

PART = "G_video/F_hemolmo"
BASE = "released_recipe"  # holds the inputs, and the weights that the others share
PREFIX = 10000


def variants() -> list[str]:
    there = {path.parent.name for path in folder().glob(f"{PART}/*/meta.json")}
    known = {BASE} if folder().resolve() == OURS.resolve() else set()
    return sorted(there | known) or [f"{MISSING}{PART}/*/meta.json"]


def cases() -> list[tuple[str, str]]:
    return [
        (variant, name)
        for variant in variants()
        for name in listed(f"{PART}/{variant}/meta.json", "batches")
    ]


def load_model(variant: str) -> Molmo:
    config = molmo.from_reference(read_json(f"{PART}/{variant}/meta.json")["model_config"])
    state = read_tensors(f"{PART}/{BASE}/state_dict.safetensors")
    state |= read_tensors(f"{PART}/{variant}/state_dict.safetensors")
    table = molmo_names.reference(config)
    model = Molmo(config, z_loss=0.0)
    model.load_state_dict(dict(rename.to_ours(table, state.__getitem__)), strict=True)
    return model.eval()


def to_reference(model: Molmo, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(rename.to_theirs(molmo_names.reference(model.config), ours.__getitem__))


def sample_of(model: Molmo, tensors: dict[str, Tensor], row: int) -> SelectionSample:
    """A row of the reference's batch, without its padding."""
    words = model.config.text.vocab_size
    ids = tensors["in.input_ids"][row]
    valid = ids != -1
    ids = ids[valid].long()
    inside = tensors.get("in.subsegment_ids", torch.full_like(tensors["in.input_ids"], PREFIX))
    inside = inside[row][valid]
    low = tensors["in.low_res_tokens_idx"][row].long()
    high = tensors["in.high_res_tokens_idx"][row].long()
    low_there = (low >= 0).any(-1)
    high_there = (high >= 0).any(-1)
    images = tensors["in.images_f16"][row]
    shares = tensors["in.low_to_high"][row].view(len(low), 4, -1)[low_there].flatten(0, 1)
    picks = int((tensors["in.high_res_features_weights"][row] > 0).sum())
    assert picks == int((ids == words + 2).sum())
    plain = Sample(
        input_ids=ids,
        labels=tensors["in.labels"][row][valid].long().clamp(min=0),
        loss_weights=tensors["in.loss_masks"][row][valid].clamp(min=0),
        position_ids=tensors["in.position_ids"][row][valid].long(),
        branch_ids=torch.where(inside == PREFIX, 0, inside + 1).int(),
        image_ids=image_ids(ids, words, model.config.text.image_attention, "hemolmo"),
        images=images,
        image_masks=torch.ones(images.shape[:2]),
        windows=torch.cat([low[low_there], high[high_there]]),
        image_positions=torch.empty(0, dtype=torch.int64),
    )
    places = tensors["in.high_res_pos_ids"][row][high_there].long()
    return selected(plain, words, places, shares[:, high_there])


def read_batch(model: Molmo, name: str) -> tuple[SelectionBatch, dict[str, Tensor]]:
    tensors = read_tensors(f"{PART}/{BASE}/{name}.safetensors")
    rows = range(len(tensors["in.input_ids"]))
    samples = [sample_of(model, tensors, row) for row in rows]
    return collate_selected(samples), tensors


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(("variant", "name"), cases())
def test_picks_logits_and_gradients(variant: str, name: str, mode: str) -> None:
    model = load_model(variant)
    batch, _ = read_batch(model, f"batch_{name}")
    golden = read_tensors(f"{PART}/{variant}/batch_{name}.safetensors")
    meta = read_json(f"{PART}/{variant}/meta.json")["batches"][name]
    model.train(mode == "train")
    seen = {}
    scores = model.scorer.scores
    model.scorer.scores = lambda x, high: seen.setdefault("scores", scores(x, high))
    body = model.body(batch)
    logits = model.head.logits(body.hidden)
    valid = batch.document_ids != 0

    picks = golden[f"out.{mode}.selected"]
    order = seen["scores"].topk(picks.shape[1]).indices
    assert torch.equal(order, picks)
    selection = model.config.selection
    raw = (seen["scores"] - selection.offset) * selection.rescale
    there = batch.candidates >= 0
    want = golden[f"out.{mode}.high_res_importance"][there]
    # without normalisation scores are in the hundreds, sums of thousands of products
    atol = max(1e-4, 3e-5 * float(want.abs().max()))
    torch.testing.assert_close(raw[there], want, atol=atol, rtol=0)
    if mode == "train" and f"out.{mode}.position_ids_after_selection" in golden and variant == BASE:
        moved = golden[f"out.{mode}.position_ids_after_selection"]
        if not torch.equal(
            moved, read_tensors(f"{PART}/{BASE}/batch_{name}.safetensors")["in.position_ids"]
        ):
            assert torch.equal(body.position_ids[valid], moved[valid].long())
    columns = golden[f"out.{mode}.logits_cols"]
    step = column_step(logits.shape[-1], columns.shape[-1])
    torch.testing.assert_close(logits[..., ::step][valid], columns[valid], atol=1e-4, rtol=0)
    assert torch.equal(logits.argmax(-1)[valid], golden[f"out.{mode}.logits_argmax"][valid])
    weights = batch.loss_weights
    labels = torch.where(weights > 0, batch.labels, 0).flatten()
    ce = F.cross_entropy(logits.flatten(0, 1), labels, reduction="none").view_as(weights) * weights
    assert float(ce.sum()) == pytest.approx(meta[mode]["ce_sum"], rel=2e-5)

    if mode == "eval":
        assert body.selection_loss is None
        return
    assert float(body.selection_loss) == pytest.approx(meta[mode]["aux_loss"], rel=2e-5)
    total = meta[mode]["weight_sum"]
    del model.scorer.scores
    model.zero_grad()
    sums = model(batch.reweighted(weights / total))
    (sums[0] + sums[1]).backward()
    grads = to_reference(model, gradients_of(model))
    for key, want in meta["grads"].items():
        check_gradient(key, grads[key], want)


def generated() -> list[str]:
    there = (folder() / PART / BASE / "generate.safetensors").exists()
    return ["generate"] if there else [f"{MISSING}{PART}/{BASE}/generate.safetensors"]


@pytest.mark.parametrize("name", generated())
def test_answers(name: str) -> None:
    model = load_model(BASE)
    batch, golden = read_batch(model, name)
    ids = golden["out.greedy_token_ids"][:, 0]
    made, scores = answer(model, batch, int(batch.input_ids[0, 0]), ids.shape[1])
    assert torch.equal(made, ids)
    torch.testing.assert_close(scores, golden["out.greedy_scores"][:, 0], atol=1e-4, rtol=0)
