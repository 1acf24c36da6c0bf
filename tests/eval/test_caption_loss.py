"""The loss over held-out captions: prompt and weights by hand, equal bits on any number of ranks."""

import json
from pathlib import Path

import pytest
import torch
from numpy.random import RandomState

from molmo_ds import settings
from molmo_ds.batch import PER_CROP, PER_WINDOW, Sample
from molmo_ds.cli import evaluate as command
from molmo_ds.config import RunConfig
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.engine.launch import World
from molmo_ds.eval.captions.loss import Sums, caption_sums, evaluate, means, pictures
from molmo_ds.eval.plan import Wish, plan
from molmo_ds.eval.sets import resolve
from molmo_ds.eval.subject import Checkpoint
from molmo_ds.hub.load import write_weights
from molmo_ds.infer.load import Answerer
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing.ranks import run_ranks

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
        {**record, "annotations": [{"style": "demo", "question": "x", "answer": "y"}]},
        RandomState(0),
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
    pictures = {name: getattr(sample, name) for name in (*PER_CROP, *PER_WINDOW)}
    return Sample(
        **pictures,
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
        assert (row.weight, row.cross_entropy, row.z_loss, row.accuracy) == pytest.approx(
            wanted, rel=2e-5
        ), index


def test_equal_bits_on_any_number_of_ranks(made: tuple[Answerer, ShardSet]) -> None:
    answerer, shards = made
    whole = list(caption_sums(answerer, shards, limit=7))
    assert [row.picture for row in whole] == pictures(shards)[:7] == [1, 3, 5, 7, 9, 11, 13]
    for size in (2, 3):
        parts = [
            row
            for rank in range(size)
            for row in caption_sums(answerer, shards, rank, size, limit=7)
        ]
        assert sorted(parts, key=lambda row: row.picture) == whole
        assert means(parts) == means(whole)
    rest = list(caption_sums(answerer, shards, limit=7, known={1, 3, 5, 7, 9}))
    assert rest == whole[5:]


def test_what_is_cut_is_counted(
    made: tuple[Answerer, ShardSet], caplog: pytest.LogCaptureFixture
) -> None:
    answerer, shards = made
    [whole] = caption_sums(answerer, shards, limit=1)
    record = shards.record(whole.picture)
    captions = [one for one in record["annotations"] if one["style"] == "long_caption"]
    tokens, _ = answerer.builder.size(
        {**record, "annotations": captions}, RandomState(6198 + whole.picture)
    )
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


@pytest.fixture(scope="module")
def folder(made: tuple[Answerer, ShardSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/pixmo_cap-validation` and the weights folder `model`."""
    answerer, shards = made
    folder = tmp_path_factory.mktemp("caption_loss")
    (folder / "data").mkdir()
    (folder / "data/pixmo_cap-validation").symlink_to(shards.path)
    config: RunConfig = answerer.model.config
    state = answerer.model.state_dict()
    tokenizer = Path(shards.path).parent / "tokenizer"
    write_weights(folder / "model", config, iter(state.items()), tokenizer, len(state))
    return folder


def of_two_ranks(world: World, folder: Path, results: Path) -> dict | None:
    """The figures at two ranks of the model in `folder`."""
    subject = Checkpoint(folder / "model", results)
    [(task, split)] = resolve("pixmo_cap")
    job = plan(subject, task, split, Wish(data=folder / "data", loss=True))
    return evaluate(job, subject.loaded(None), world)


def test_the_command_goes_on_after_a_kill_and_ranks_agree(folder: Path, tmp_path: Path) -> None:
    words = [
        str(folder / "model"),
        "pixmo_cap",
        "--loss",
        "--data",
        str(folder / "data"),
        "--save-dir",
        str(tmp_path),
    ]
    assert command.main(words) == 0
    results = tmp_path / "loss-pixmo_cap-validation"
    first = json.loads((results / "metrics.json").read_text())
    assert set(first["metrics"]) == {"Loss", "Accuracy", "ZLoss"}
    assert first["figures"]["questions"] == 20, "every second of 40 samples has a caption"

    [log] = (results / "log").glob("*.jsonl")
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:8]) + lines[8][:20])
    (results / "metrics.json").unlink()
    assert command.main(words) == 0
    assert json.loads((results / "metrics.json").read_text())["figures"] == first["figures"]
    again = log.read_text().splitlines(keepends=True)
    assert again[:8] == lines[:8] and sorted(again) == sorted(lines)

    figures, none = run_ranks(of_two_ranks, 2, folder, tmp_path / "two")
    assert figures == first["figures"] and none is None


def test_what_a_loss_cannot_be_of(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        command.main(
            ["--server", "http://none", "pixmo_cap", "--loss", "--save-dir", str(tmp_path)]
        )
    assert "--loss needs a checkpoint" in capsys.readouterr().err
