"""molmo-ds evaluate: from a command line to files, and every mistake in one sentence."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chat_server import ChatServer, said
from eval_files import make, picture

from molmo_ds.cli import evaluate
from molmo_ds.data.read.writer import write_shards
from molmo_ds.engine.checks import lost
from molmo_ds.hub.export import to_hub
from molmo_ds.infer import load
from molmo_ds.model.families.molmo import to_released
from molmo_ds.weights.source import open_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("command"), "model.images.crop_mode=overlap-and-resize-c2")


@pytest.fixture
def command(folder: Path):
    def run(*words: str) -> int:
        return evaluate.main([*words, "--data", str(folder / "data")])

    return run


def test_a_checkpoint_is_evaluated_and_its_figures_are_kept(
    command, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(folder / "model")
    assert command(model, "text_vqa") == 0
    printed = capsys.readouterr().out
    assert "text_vqa:validation/vqa_score: 0." in printed and "Molmo-72B 83.1" in printed
    results = folder / "model/predictions-text_vqa-validation"
    names = {"predictions.json", "rows.jsonl", "metrics.json", "text_vqa-predictions.html", "log"}
    assert {file.name for file in results.iterdir()} == names
    found = json.loads((results / "metrics.json").read_text())
    assert found["provenance"]["crops"] == 1 and found["provenance"]["precision"] == "fp32"
    assert found["model_config"]["text"]["hidden_size"] == 32

    def refuse(*_: object) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(load, "read", refuse)
    assert command(model, "text_vqa:validation") == 0
    assert capsys.readouterr().out == printed
    assert command(model, "text_vqa", "--beside", str(results)) == 0
    assert capsys.readouterr().out == printed
    page = (results / "text_vqa-predictions.html").read_text()
    assert '"beside": "predictions-text_vqa-validation"' in page
    with pytest.raises(ValueError, match=r"^--beside .*/data holds no rows.jsonl, "):
        command(model, "text_vqa", "--beside", str(folder / "data"))
    assert command(model, "text_vqa", "--rescore") == 0
    assert capsys.readouterr().out == printed
    (results / "metrics.json").unlink()  # killed after the last reply and before the figures
    assert command(model, "text_vqa") == 0
    assert capsys.readouterr().out == printed
    assert json.loads((results / "metrics.json").read_text())["figures"] == found["figures"]
    with pytest.raises(ValueError, match="limit None, now 3.*--eval-name"):
        command(model, "text_vqa", "--limit", "3")


def test_exported_and_released_folders_are_evaluated_as_they_are(
    command, folder: Path, tmp_path: Path
) -> None:
    model = folder / "model"
    to_hub(model, tmp_path / "exported")
    config = json.dumps(to_released(open_source(model).config.model, "float32"))
    kept = ("*.safetensors*", "tokenizer*", "generation_config.json")
    (tmp_path / "released").mkdir()  # no code, no checksums and none of our settings
    for file in (file for pattern in kept for file in (tmp_path / "exported").glob(pattern)):
        shutil.copy(file, tmp_path / "released")
    (tmp_path / "released/config.json").write_text(config)
    found = []
    for given in (model, tmp_path / "exported", tmp_path / "released"):
        out = tmp_path / f"out-{given.name}"
        assert command(str(given), "text_vqa", "--limit", "4", "--save-dir", str(out)) == 0
        (predictions,) = out.rglob("predictions.json")
        found.append(json.loads(predictions.read_text()))
    assert found[0] == found[1] == found[2] and any(row["prediction"] for row in found[0])


def test_other_crops_get_a_folder_of_their_own(command, folder: Path) -> None:
    for options, name, crops in (
        (["--high-res"], "36crop", 36),
        (["--high-res", "--max-crops", "3"], "3crop", 3),
        (["--high-res", "--eval-name", "mine"], "mine", 36),
    ):
        words = [
            str(folder / "model"),
            "text_vqa",
            "--limit",
            "2",
            "--save-dir",
            str(folder / "out"),
            *options,
        ]
        assert command(*words) == 0
        found = json.loads(
            (folder / f"out/predictions-text_vqa-validation-{name}/metrics.json").read_text()
        )
        assert found["provenance"]["crops"] == crops and found["figures"]["questions"] == 2


def test_high_res_cuts_a_large_picture_into_36_crops(tmp_path: Path) -> None:
    """6 x 6 crops of 28 pixels, each 2 x 2 pooled patches; rows end in a token, views begin and end with one."""
    folder = make(tmp_path, "model.images.crop_mode=overlap-and-resize-c2")
    asked = {"style": "text_vqa", "question": "What is here?", "answers": ["red"] * 10}
    content = json.dumps(
        {"images": ["png"], "annotations": [asked], "metadata": {"image_id": "large"}}
    )
    parts = {"png": picture(100, (6 * 28, 6 * 28)), "json": content.encode()}
    write_shards([("large", parts)], folder / "large/text_vqa-validation")
    tokens = {}
    for options in ([], ["--high-res"]):
        words = [
            str(folder / "model"),
            "text_vqa",
            "--data",
            str(folder / "large"),
            "--eval-name",
            f"{len(options)}",
        ]
        assert evaluate.main([*words, *options]) == 0
        rows = (
            folder / f"model/predictions-text_vqa-validation-{len(options)}/rows.jsonl"
        ).read_text()
        tokens[len(options)] = json.loads(rows)["prompt"].split()[0]
    overview = 2 * 2  # patches
    one_crop = 2 * 2
    high = 12 * 12
    assert tokens == {
        0: f"IMAGE[{overview}]IMAGE[{one_crop}]",
        1: f"IMAGE[{overview}]IMAGE[{high}]",
    }


def test_a_server_is_evaluated(command, folder: Path) -> None:
    with ChatServer(lambda text, times: said("red") if "number 0" in text else (400, {})) as server:
        words = ["--server", server.url, "text_vqa", "--save-dir", str(folder / "served")]
        assert command(*words) == 1
    found = json.loads((folder / "served/predictions-text_vqa-validation/metrics.json").read_text())
    assert found["figures"]["failed"] == 12 and len(found["failures"]) == 12
    assert found["metrics"]["vqa_score"] == pytest.approx(1 / 3)  # two of six pictures are red
    assert found["provenance"]["checkpoint"].endswith("/v1 made-up")


def test_crops_of_a_model_that_resizes_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path)
    words = [str(folder / "model"), "text_vqa", "--data", str(folder / "data"), "--high-res"]
    with pytest.raises(ValueError, match="sees each picture as one crop"):
        evaluate.main(words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["MODEL", "text_vq"], "did you mean 'text_vqa'"),
        (["MODEL", "text_vqa:train"], "no split 'train'"),
        (["MODEL", "text_vqa:test"], "no shards at .*text_vqa-test"),
        (["nowhere", "text_vqa"], "nowhere cannot be read"),
        (["MODEL", "text_vqa", "--rescore", "--eval-name", "new"], "holds no replies"),
        (["MODEL", "text_vqa", "--device", "abacus"], "no device 'abacus'"),
        (
            ["MODEL", "text_vqa", "--strategy", "ds_configs/infer/tp8.json"],
            "does not divide by autotp_size=8",
        ),
        (
            ["MODEL", "text_vqa", "--strategy", "ds_configs/zero3.json"],
            "answer with ds_configs/infer/tp8.json",
        ),
    ],
)
def test_mistakes_are_sentences(command, folder: Path, words: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        command(*[str(folder / "model") if word == "MODEL" else word for word in words])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["m"], "name a CHECKPOINT"),
        (["--server", "http://x", "text_vqa"], "needs --save-dir"),
        (["m", "text_vqa", "--limit", "0"], "--limit is 0"),
        (["m", "text_vqa", "--max-crops", "37"], "up to 36"),
        (["m", "text_vqa", "--shuffle-seed", "1"], "give both"),
        (["m", "text_vqa", "--model", "x"], "--model belongs to --server"),
        (
            ["text_vqa", "--server", "http://x", "--save-dir", "y", "--precision", "bf16"],
            "--precision belongs to a checkpoint",
        ),
        (
            ["text_vqa", "--server", "http://x", "--save-dir", "y", "--batch", "3"],
            "--batch belongs to a checkpoint",
        ),
        (["m", "text_vqa", "--rescore", "--overwrite"], "give one"),
        (["m", "text_vqa", "--eval-name", "../x"], "part of a folder's name, without /"),
        (["m", "mvbench", "--max-frames", "0"], "--max-frames is 0"),
        (["m", "mvbench", "--max-frames", "5000"], "4096 at most"),
        (["m", "text_vqa", "--strategy", "a.json", "--batch", "3"], "leave --batch out"),
    ],
)
def test_options_that_cannot_be(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(words)
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("[pair.cc:538] Connection closed by peer [::1]:4"), "Another rank has ended"),
        (torch.distributed.DistBackendError("NCCL error"), "Another rank has ended"),
        (RuntimeError("[buf.cc:72] Timed out waiting 60000ms"), "did not answer in time"),
        (torch.OutOfMemoryError("CUDA out of memory."), "memory of the GPU is over"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_what_another_rank_does_is_a_sentence(error: RuntimeError, said: str | None) -> None:
    found = lost.sentence(error)
    assert found is None if said is None else said in found


def test_the_list_needs_no_torch_and_says_what_is_here(folder: Path) -> None:
    code = "import sys; from molmo_ds.cli import evaluate; evaluate.main(sys.argv[1:]); assert 'torch' not in sys.modules"  # noqa: E501
    command = [sys.executable, "-c", code, "--list", "--data", str(folder / "data")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    (line,) = [line for line in printed.splitlines() if line.startswith("text_vqa:validation ")]
    for word in (
        "TextVQA",
        "5,000",
        "12",
        "36",
        "vqa_score",
        "78.8",
        "80.4",
        "81.7",
        "83.1",
        "here",
    ):
        assert word in line.split(), word
    (line,) = [line for line in printed.splitlines() if line.startswith("text_vqa:test ")]
    assert "(no answers)" in line and line.endswith("text_vqa-test") and "83.1" not in line
    assert "paper: " in printed
