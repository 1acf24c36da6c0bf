"""Results of an evaluation in a store: all of them are there when the command returns."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from molmo_ds import settings
from molmo_ds.cli import evaluate
from molmo_ds.data.read.writer import write_shards
from molmo_ds.testing import run_files
from molmo_ds.testing.random_weights import initial_folder


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_figures_reach_the_log_of_the_run(store, tmp_path: Path) -> None:
    made = run_files.make(tmp_path / "run")
    config = settings.load(overrides=[*made, f"out={tmp_path / 'none'}"])
    step = initial_folder(tmp_path / "step-00000003", config.model, tmp_path / "run/tokenizer")
    picture = io.BytesIO()
    Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(picture, "PNG")
    asked = {"style": "text_vqa", "question": "What is here?", "answers": ["red"] * 10}
    known = {"images": ["png"], "annotations": [asked], "metadata": {"image_id": "one"}}
    record = {"png": picture.getvalue(), "json": json.dumps(known).encode()}
    write_shards([("one", record)], tmp_path / "data/text_vqa-validation")
    (store.folder / "log.jsonl").write_bytes(b'{"step": 3, "loss": 1.0}\n')
    options = ["--data", str(tmp_path / "data"), "--save-dir", store.folder.url]
    assert evaluate.main([str(step), "text_vqa", *options]) == 0
    trained, evaluated = (store.folder / "log.jsonl").read_text().splitlines()
    assert json.loads(trained) == {"step": 3, "loss": 1.0}
    assert json.loads(evaluated)["step"] == 3
    assert "eval/text_vqa:validation/vqa_score" in json.loads(evaluated)
