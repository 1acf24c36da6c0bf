"""A checkpoint of a newer release is named as that, and no older one is taken in its place."""

import json
from pathlib import Path

import pytest

from molmo_ds.weights import checkpoint


def test_a_newer_checkpoint_is_refused(tmp_path: Path) -> None:
    for step, number in ((1, checkpoint.FORMAT), (2, checkpoint.FORMAT + 1)):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        manifest = {"format": number, "step": step, "fields": "of another release"}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    newest = tmp_path / "checkpoints" / "step-00000002"
    for ask in (checkpoint.find, checkpoint.what_is_wrong):
        with pytest.raises(
            checkpoint.NewerFormatError, match=r"newer molmo_ds \(format 3.*upgrade"
        ):
            ask(tmp_path if ask is checkpoint.find else newest)
    # one of this format that lacks its fields is damaged, and not newer
    older = tmp_path / "checkpoints" / "step-00000001"
    assert checkpoint.what_is_wrong(older) == "manifest.json cannot be read"
