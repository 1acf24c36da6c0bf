"""The loss over held-out captions: prompt and weights by hand, equal bits on any number of ranks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from numpy.random import RandomState

from molmo_ds import settings
from molmo_ds.batch import Sample
from molmo_ds.config import RunConfig
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.eval.caption_loss import Sums, caption_sums, means, pictures
from molmo_ds.eval.load import Answerer
from molmo_ds.model.molmo import Molmo

CAPTIONER = ["data.prompts.prompt_templates=none", "data.prompts.message_format=none"]
CAPTIONER += ["data.prompts.system_prompt=style_and_length"]


@pytest.fixture(scope="module")
def made(tiny_run: list[str]) -> tuple[Answerer, ShardSet]:
    """A captioner of random weights, and shards in which every second sample has a caption."""
    config: RunConfig = settings.load(None, [*tiny_run, *CAPTIONER, "out=unused"])
    model = Molmo(config.model)
    model.reset_parameters(3)
    answerer = Answerer(model.eval(), SampleBuilder(config), torch.device("cpu"))
    return answerer, ShardSet(config.data.sources["grey"].path)


def by_hand(answerer: Answerer, shards: ShardSet, index: int) -> tuple[float, float, float, float]:
    """(weights, losses, z-losses, hits) of one picture, in double from the logits."""
    record = shards.read(index)
    [caption] = [one["text"] for one in record["annotations"] if one["style"] == "long_caption"]
    random = RandomState(6198 + index)
    told = random.random() > 0.1
    length = (len(caption) + int(random.normal(scale=25))) // 15 if told else ""
    words = answerer.builder.tokenizer
    prompt = words.encode(f" long_caption {length}:")
    answer = [*words.encode(f" {caption}"), words.eos]
    sample = answerer.builder.build(
        {**record, "annotations": [{"style": "demo", "question": "x", "answer": "y"}]}, RandomState(0)
    )
    prefix = int((sample.branch_ids == 0).sum())
    ids = torch.cat([sample.input_ids[:prefix], torch.tensor(prompt + answer[:-1])])
    labels = torch.tensor(answer)
    batch = answerer.batch([_replaced(sample, ids)])
    with torch.inference_mode():
        logits = answerer.model.logits(batch)[0, -len(answer) :].double()
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
    z_losses = 1e-4 * logits.logsumexp(-1).square().sum().item()
    return len(answer), losses, z_losses, (logits.argmax(-1) == labels).sum().item()


def _replaced(sample: Sample, ids: torch.Tensor) -> Sample:
    """The picture of a sample with other tokens, one branch."""
    branch = torch.zeros(len(ids), dtype=torch.int32)
    prefix = int((sample.branch_ids == 0).sum())
    branch[prefix:] = 1
    return replace(
        sample,
        input_ids=ids,
        labels=torch.zeros_like(ids),
        loss_weights=torch.ones(len(ids)),
        position_ids=torch.arange(len(ids)),
        branch_ids=branch,
    )


def test_each_picture_is_as_by_hand(made: tuple[Answerer, ShardSet]) -> None:
    answerer, shards = made
    with_picture = [index for index in pictures(shards) if index % 5][:6]
    found = {row.picture: row for row in caption_sums(answerer, shards, limit=10)}
    for index in with_picture:
        row = found[index]
        wanted = by_hand(answerer, shards, index)
        assert (row.weight, row.cross_entropy, row.z_loss, row.accuracy) == pytest.approx(wanted, rel=2e-5), index


def test_equal_bits_on_any_number_of_ranks(made: tuple[Answerer, ShardSet]) -> None:
    answerer, shards = made
    whole = list(caption_sums(answerer, shards, limit=7))
    assert [row.picture for row in whole] == pictures(shards)[:7] == [1, 3, 5, 7, 9, 11, 13]
    for size in (2, 3):
        parts = [row for rank in range(size) for row in caption_sums(answerer, shards, rank, size, limit=7)]
        assert sorted(parts, key=lambda row: row.picture) == whole
        assert means(parts) == means(whole)
    rest = list(caption_sums(answerer, shards, limit=7, known={1, 3, 5, 7, 9}))
    assert rest == whole[5:]


def test_what_is_cut_is_counted(made: tuple[Answerer, ShardSet], caplog: pytest.LogCaptureFixture) -> None:
    answerer, shards = made
    [whole] = caption_sums(answerer, shards, limit=1)
    record = shards.record(whole.picture)
    captions = [one for one in record["annotations"] if one["style"] == "long_caption"]
    tokens, _ = answerer.builder.size({**record, "annotations": captions}, RandomState(6198 + whole.picture))
    [short] = caption_sums(answerer, shards, limit=1, sequence_length=tokens - 2)
    assert (short.cut, short.weight) == (2, whole.weight - 2)
    assert means([short])["cut"] == 1 and "1 of 1 captions lost their end" in caplog.text
    with pytest.raises(ValueError, match=r"^Sample 000001 has no loss: .*leave no room"):
        list(caption_sums(answerer, shards, limit=1, sequence_length=3))


def test_means_by_hand() -> None:
    """Losses 6 over weight 2 and 2 over weight 6: the mean is 1; deviations 4 and -4, so sqrt(32 * 2 / 1) / 8 = 1."""
    rows = [
        Sums(picture=0, weight=2.0, cross_entropy=6.0, z_loss=0.8, accuracy=1.0),
        Sums(picture=1, weight=6.0, cross_entropy=2.0, z_loss=0.0, accuracy=3.0),
    ]
    wanted = {"Loss": 1, "Loss_error": 1, "Accuracy": 0.5, "ZLoss": 0.1, "n": 2, "cut": 0}
    assert means(rows) == pytest.approx(wanted)
    with pytest.raises(AssertionError, match="counts twice"):
        means([rows[0], rows[0]])


def test_shards_without_captions(tmp_path: Path) -> None:
    record = b'{"images": [], "annotations": [{"style": "vqa2", "question": "a", "answer": "b"}]}'
    write_shards(iter([("0", {"json": record})]), tmp_path / "shards", samples_per_shard=1)
    with pytest.raises(ValueError, match="holds no caption"):
        pictures(ShardSet(str(tmp_path / "shards")))
