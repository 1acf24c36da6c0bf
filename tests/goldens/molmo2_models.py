"""The reference's Molmo2 configurations, weights and batches (G_video/A_molmo2), turned into ours."""

from functools import cache
from typing import Any

import torch
from golden_files import MISSING, OURS, folder, need, read_json, read_tensors
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Batch, learnt_rows_of, shifted
from molmo_ds.data.sample.pictures.image_ids import image_ids
from molmo_ds.model.families import molmo, molmo_names
from molmo_ds.model.molmo import Molmo
from molmo_ds.weights import rename

PART = "G_video/A_molmo2"
KIND = "q3_8b"  # the model of our own copy
SAMPLE = 100000  # between the reference's subsegment ids of two packed samples
PREFIX = 10000  # of BOS and pictures
PATCH = 2  # <im_patch>, counted from vocab_size


def kinds() -> list[str]:
    """The models of A_molmo2."""
    there = {path.parent.name for path in folder().glob(f"{PART}/*/meta.json")}
    known = {KIND} if folder().resolve() == OURS.resolve() else set()
    return sorted(there | known) or [f"{MISSING}{PART}/*/meta.json"]


def files(pattern: str) -> list[tuple[str, str]]:
    """(model, NAME) of every `pattern_NAME.safetensors`."""
    paths = sorted(folder().glob(f"{PART}/*/{pattern}_*.safetensors"))
    found = [(path.parent.name, path.stem.removeprefix(f"{pattern}_")) for path in paths]
    return found or [(f"{MISSING}{PART}/*/{pattern}_*.safetensors", "")]


@cache
def read_config(kind: str) -> MolmoConfig:
    """The `model_config` of a kind's meta.json."""
    return molmo.from_reference(read_json(f"{PART}/{kind}/meta.json")["model_config"])


@cache
def weights(kind: str) -> dict[str, Tensor]:
    """The weights under the reference's keys, from the released folder where it holds the only copy."""
    path = f"{PART}/{kind}/state_dict.safetensors"
    if (folder() / path).exists():
        return read_tensors(path)
    released = read_tensors(f"{PART}/{kind}/hf/model.safetensors")
    config = read_config(kind)
    ours = dict(rename.to_ours(molmo_names.released(config), released.__getitem__))
    return dict(rename.to_theirs(molmo_names.reference(config), ours.__getitem__))


def load_model(kind: str, **arguments: Any) -> Molmo:
    """The golden model in eval mode; every weight of the file is used and none is missing."""
    state = weights(kind)
    table = table_of(kind)
    model = Molmo(read_config(kind), **arguments)
    assert {key for rule in table for key in rule.theirs} == set(state)
    model.load_state_dict(dict(rename.to_ours(table, state.__getitem__)), strict=True)
    return model.eval()


def table_of(kind: str) -> list:
    """The rename table of the reference's checkpoint, which has no head of its own where it is tied."""
    config = read_config(kind)
    table = molmo_names.reference(config)
    if not config.text.tie_word_embeddings:
        return table
    return [
        rule
        if rule.ours != ("head.lm_head.weight",)
        else type(rule)(rule.ours, ("transformer.wte.embedding",), rule.form)
        for rule in table
    ]


def to_reference(kind: str, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names (weights or gradients) under the reference's."""
    return dict(rename.to_theirs(molmo_names.reference(read_config(kind)), ours.__getitem__))


def pixels(kind: str, name: str, tensors: dict[str, Tensor]) -> Tensor:
    """uint8 [B, crops, P, patch * patch * 3], which one kind stores for all that have this batch."""
    if "in.images" in tensors:
        return tensors["in.images"]
    for other in kinds():
        path = f"{PART}/{other}/batch_{name}.safetensors"
        if other != kind and (folder() / path).exists():
            found = read_tensors(path)
            same = found["in.token_pooling"].shape == tensors["in.token_pooling"].shape
            if "in.images" in found and same:
                return found["in.images"]
    return need(f"{PART}/{kind}/batch_{name}.safetensors:in.images")


def to_batch(config: MolmoConfig, tensors: dict[str, Tensor], images: Tensor) -> Batch:
    """A padded batch of the reference (`in.*`, pad value -1 everywhere) as ours."""
    ids = tensors["in.input_ids"].long()
    valid = ids != -1
    subsegments = tensors.get("in.subsegment_ids", torch.zeros_like(ids)).long()
    inside = subsegments % SAMPLE
    documents = torch.where(valid, subsegments // SAMPLE + 1, 0)
    branches = torch.where(valid & (inside != PREFIX), inside + 1, 0)
    if "in.subsegment_ids" not in tensors:
        branches = torch.zeros_like(ids)
    words = config.text.vocab_size
    pictures = torch.zeros_like(ids, dtype=torch.int32)
    for row, document in ((r, d) for r in range(len(ids)) for d in documents[r].unique().tolist()):
        mine = (documents[row] == document) & valid[row]
        pictures[row, mine] = image_ids(ids[row, mine], words, config.text.image_attention)
    pooling = tensors["in.token_pooling"].long()
    patches = images.shape[2]
    per_row = images.shape[1] * patches
    start = torch.arange(len(ids))[:, None, None] * per_row
    shown = (pooling >= 0).any(-1)
    places = (ids == words + PATCH).flatten().nonzero()[:, 0]
    assert len(places) == int(shown.sum())
    zeros = torch.zeros(ids.shape)
    loss_weights = tensors.get("in.loss_masks", zeros).clamp(min=0)
    return Batch(
        input_ids=ids.clamp(min=0),
        labels=tensors.get("in.labels", torch.zeros_like(ids)).long().clamp(min=0),
        loss_weights=loss_weights,
        position_ids=tensors["in.position_ids"].long().clamp(min=0),
        document_ids=documents.int(),
        branch_ids=branches.int(),
        image_ids=pictures,
        images=(images.float() / 255 * 2 - 1).flatten(0, 1),
        image_masks=torch.ones(images.shape[0] * images.shape[1], patches),
        windows=shifted(pooling, start)[shown],
        image_positions=places,
        learnt_rows=learnt_rows_of(loss_weights),
    )


def read_batch(kind: str, name: str) -> tuple[Batch, dict[str, Tensor], dict[str, Any]]:
    """(batch, the file's tensors, its entry in meta.json)."""
    tensors = read_tensors(f"{PART}/{kind}/batch_{name}.safetensors")
    images = pixels(kind, name, tensors)
    meta = read_json(f"{PART}/{kind}/meta.json")["batches"][name]
    return to_batch(read_config(kind), tensors, images), tensors, meta


def read_prompts(kind: str, name: str) -> tuple[Batch, dict[str, Tensor]]:
    """(prompts to be answered, the file's tensors)."""
    tensors = read_tensors(f"{PART}/{kind}/generate_{name}.safetensors")
    return to_batch(read_config(kind), tensors, tensors["in.images"]), tensors


def per_token_loss(model: Molmo, batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and z-loss [B, T] of each token times its weight."""
    weights = batch.loss_weights
    labels = torch.where(weights > 0, batch.labels, 0).flatten()
    ce = F.cross_entropy(logits.flatten(0, 1), labels, reduction="none").view_as(weights)
    return ce * weights, model.head.z_loss * logits.logsumexp(-1) ** 2 * weights
