"""What tells two evaluations apart: weights, also those of one tensor or of another format, and who scored."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from eval_files import TASK, job, records
from safetensors.torch import save_file

from molmo_ds.data.read.writer import write_shards
from molmo_ds.engine import launch
from molmo_ds.eval import plan, results, run
from molmo_ds.eval.clients.client import Reply
from molmo_ds.eval.provenance import BLOCK, BLOCKS, checkpoint_hash

ALONE = launch.alone()


class Red:
    """Says red."""

    def replies(self, asks):
        for ask in asks:
            yield Reply(id=ask.id, text="red", token_count=1, end="stop")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("provenance")
    write_shards(records(), folder / "data/text_vqa-validation")
    return folder


def test_one_tensor_among_many_bytes_makes_other_weights(tmp_path: Path) -> None:
    # so long that the blocks at equal distances leave gaps of a block
    large = torch.zeros(2 * BLOCKS * BLOCK // 4)
    tensors = {"a": large, "b": torch.zeros(3), "c": large.clone()}
    found = set()
    for value in range(3):
        tensors["b"][0] = value
        save_file(tensors, tmp_path / "model.safetensors")
        found.add(checkpoint_hash(tmp_path))
    assert len(found) == 3


def test_weights_of_the_reference_s_own_format_are_looked_at(tmp_path: Path) -> None:
    found = set()
    for value in range(2):
        torch.save({"a": torch.full((3,), value)}, tmp_path / "model.pt")
        found.add(checkpoint_hash(tmp_path))
    assert len(found) == 2


def finished(folder: Path, name: str) -> run.Job:
    mine = job(folder, name)
    results.write(mine, run.evaluate(mine, Red(), ALONE), {}, {})
    return mine


def test_figures_of_another_version_s_scoring_are_not_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = finished(folder, "scored")
    assert results.cached(mine, ALONE)
    monkeypatch.setattr(results, "code_version", lambda: "2")
    with pytest.raises(ValueError, match=r"was scored by another version .* now 2.*--rescore\.$"):
        results.cached(mine, ALONE)
    results.write(mine, run.rescore(mine), {}, {})
    assert results.cached(mine, ALONE)["scored_by"] == "2"


def test_saved_replies_keep_their_provenance(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = finished(folder, "saved")
    saved = mine.provenance.values()
    now = job(folder, "saved", code="2", checkpoint="other").provenance
    # a field that this version does not know
    assert plan.of_saved(now, {**saved, "colour": "red"}, mine.results) == mine.provenance
    assert not caplog.records
    limited = job(folder, "saved", limit=5).provenance
    with pytest.raises(ValueError, match=r"asked with limit None, not 5; leave --limit"):
        plan.of_saved(limited, saved, mine.results)
    assert plan.of_saved(now, limited.values(), mine.results).limit == 5
    with caplog.at_level(logging.WARNING):
        plan.of_saved(job(folder, "saved", data="others").provenance, saved, mine.results)
    assert "The shards are not those" in caplog.text


def test_limited_figures_and_those_of_other_crops_have_no_place_among_the_usual_ones(
    folder: Path,
) -> None:
    assert job(folder, "x").recorded == f"{TASK.name}:validation"
    assert job(folder, "x", limit=3).recorded == ""
    other = dataclasses.replace(job(folder, "x"), name="36crop")
    assert other.recorded == f"{TASK.name}:validation-36crop"
