"""Weights in a store: read in place to answer, convert or train from them, and written whole or not."""

import json
from pathlib import Path

import pytest
import torch

from molmo_ds import files
from molmo_ds.architecture import MolmoConfig
from molmo_ds.cli import evaluate
from molmo_ds.config import DataConfig, RunConfig
from molmo_ds.hub import export
from molmo_ds.infer import load as answers
from molmo_ds.model.init import initial_parameter
from molmo_ds.stores.publish import publish
from molmo_ds.testing import run_files
from molmo_ds.testing.random_weights import initial_folder
from molmo_ds.weights import source, tensor_files, tensor_writer
from molmo_ds.weights.checksums import SMALLEST
from molmo_ds.weights.first_weights import first_weights


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    run_files.make(folder)
    return folder / "tokenizer"


@pytest.fixture(scope="module")
def config() -> MolmoConfig:
    from molmo_ds import settings

    return settings.load(None, ["preset=tiny", *run_files.MODEL]).model


def write(out: Path | files.Remote, config: MolmoConfig, tokenizer: Path) -> None:
    """A folder of weights, drawn."""
    initial_folder(out, source.untied(config), tokenizer, 3)


def test_written_read_exported_and_asked(
    store, config: MolmoConfig, tokenizer: Path, tmp_path: Path
) -> None:
    weights = store.folder / "weights"
    store.wire.faults = [("(PUT|POST)", "503"), ("(PUT|POST)", "drop")]
    write(weights, config, tokenizer)
    write(tmp_path / "weights", config, tokenizer)
    with pytest.raises(ValueError, match=r"weights exists already; give the name of a new folder"):
        write(weights, config, tokenizer)
    export.to_hub(str(weights), str(store.folder / "export"), "fp32")
    for name in ("weights", "export"):
        store.wire.faults = [("GET", "503"), ("GET", "drop")]
        there = source.open_source(str(store.folder / name))
        assert not store.wire.faults
        here = source.open_source(tmp_path / "weights")
        assert there.shapes == here.shapes
        for tensor, shape in here.shapes.items():
            half = shape[0] // 2
            assert there.rows(tensor, half, shape[0]).equal(here.rows(tensor, half, shape[0]))
        copy = Path(there.config.data.tokenizer)
        assert (copy / "tokenizer.json").is_file(), "libraries read a tokenizer from a disk"
    if "gs:" in store.folder.url:
        return
    one = answers.load(str(store.folder / "export"), device="cpu")
    other = answers.load(tmp_path / "weights", device="cpu")
    for (name, mine), (_, theirs) in zip(
        one.model.named_parameters(), other.model.named_parameters(), strict=True
    ):
        assert mine.equal(theirs), name


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_evaluated_out_of_a_store_into_it(
    store, config: MolmoConfig, tokenizer: Path, capsys: pytest.CaptureFixture
) -> None:
    write(store.folder / "weights", config, tokenizer)
    results = store.folder / "results"
    words = [str(store.folder / "weights"), "short_answers:shards", "--limit", "4"]
    words += ["--data", str(tokenizer.parent), "--save-dir", str(results)]
    assert evaluate.main(words) == 0
    said = capsys.readouterr().out
    assert "short_answers:shards/vqa_score: " in said
    metrics = json.loads((results / "predictions-short_answers-shards/metrics.json").read_bytes())
    assert metrics["figures"]["questions"] == 4
    assert metrics["eval_config"]["checkpoint"] == str(store.folder / "weights")
    assert evaluate.main(words) == 0 and capsys.readouterr().out == said


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_only_what_is_needed_is_read(
    store, config: MolmoConfig, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store.folder, config, tokenizer)
    read = []
    ranged = files.read_range

    def counted(path: str, start: int, stop: int) -> bytes:
        read.append(stop - start)
        return ranged(path, start, stop)

    run = RunConfig(model=config, init_from=str(store.folder), data=DataConfig())
    part = first_weights(run)
    monkeypatch.setattr(files, "read_range", counted)
    name = "embed.embedding"
    shape = tuple(source.shapes_of(config)[name])
    row = shape[1]
    got = part(name, shape, 3 * row + 1, 5 * row - 1)
    assert got.equal(
        initial_parameter(config, name, list(shape), 3).reshape(-1)[3 * row + 1 : 5 * row - 1]
    )
    assert read == [SMALLEST]  # with a checksum of its own


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_half_written_folder_is_none(
    store, config: MolmoConfig, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path, target: files.Remote) -> None:
        (folder / "config.yaml").unlink()  # which would have come last
        publish(folder, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tensor_writer, "publish", killed)
        write(store.folder, config, tokenizer)
    with pytest.raises(ValueError, match="holds neither checkpoints nor weights"):
        source.open_source(store.folder)


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_sentences(store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="holds neither checkpoints nor weights"):
        source.open_source("s3://bucket/nowhere")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    (store.folder / "pytorch_model.bin").write_bytes((tmp_path / "pytorch_model.bin").read_bytes())
    with pytest.raises(ValueError, match="cannot be read in parts"):
        tensor_files.TensorFolder(store.folder)
    new = tensor_writer.new_folder("hf://someone/model")
    with pytest.raises(ValueError, match="can be read only; write to a folder or to s3://"), new:
        pass
    monkeypatch.setattr(files, "ATTEMPTS", 2)
    store.wire.faults = [("GET|HEAD", "503")] * 40
    with pytest.raises(OSError, match="could not be read in 2 tries"):
        source.open_source(store.folder)
