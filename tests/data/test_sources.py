"""What tools/download.py does with any public data set: options, mistakes, the hub, a kill."""

import hashlib
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from picture_server import Server, picture
from PIL import Image
from source_helpers import ROOT, Hub, build, read, run, shown

from molmo_ds.data import sources
from molmo_ds.data.decode import load_image
from molmo_ds.data.sources.fetching.download import table
from molmo_ds.data.sources.fetching.records import part


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    thing = Server()
    yield thing
    thing.stop()


def test_options_of_the_tool(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [
        {"image_url": server.url(f"good/{i % 3}"), "question": f"q{i}", "answer": f"a{i}"}
        for i in range(14)
    ]
    Hub(tmp_path / "pixmo_cap_qa").parquet(rows)
    records = build(tmp_path, "pixmo_cap_qa", "--max-annotations", "4")
    # 5, 5 and 4 questions: two pictures in two records of nearly the same size, one in one
    assert [len(r["annotations"]) for r in records] == [3, 2, 3, 2, 4]
    assert [r["__key__"][-10:] for r in records] == [
        "00000000-0",
        "00000000-1",
        "00000001-0",
        "00000001-1",
        "a-00000002",
    ]
    shards = tmp_path / "out" / "pixmo_cap_qa-train"
    before = [(p.name, p.read_bytes()) for p in sorted(shards.glob("*.tar*"))]
    build(tmp_path, "pixmo_cap_qa", "--max-annotations", "4", "--overwrite")
    assert [(p.name, p.read_bytes()) for p in sorted(shards.glob("*.tar*"))] == before

    train = build(tmp_path, "pixmo_cap_qa", "--hold-out", "1", "--overwrite")
    held_out = read(tmp_path / "out" / "pixmo_cap_qa-validation")
    assert len(train) == 2
    assert len(held_out) == 1
    hashes = {
        hashlib.sha256(repr(row["image_url"]).encode()).digest(): row["image_url"]
        for row in rows[:3]
    }
    assert held_out[0]["metadata"] == {"image_url": hashes[min(hashes)]}
    assert len(build(tmp_path, "pixmo_cap_qa", "--limit", "2", "--overwrite")) == 2

    # from a zip, and from one file
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(
            tmp_path / "pixmo_cap_qa" / "data" / "train-00000-of-00001.parquet",
            "pixmo_cap_qa/train-0.parquet",
        )
    for source in (
        tmp_path / "all.zip",
        tmp_path / "pixmo_cap_qa" / "data" / "train-00000-of-00001.parquet",
    ):
        argv = [
            "pixmo_cap_qa",
            "--from",
            str(source),
            "--out",
            str(tmp_path / "out"),
            "--overwrite",
        ]
        assert run(tmp_path, *argv) == 0
        assert len(read(shards)) == 3


def test_mistakes(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(
        ValueError,
        match="There is no data set 'pixmo_points_countin'; did you mean 'pixmo_points_counting'?",
    ):
        sources.get("pixmo_points_countin")

    def says(words: str, name: str, *options: str) -> None:
        assert run(tmp_path, name, "--out", str(tmp_path / "out"), *options) == 1
        assert words in capsys.readouterr().err

    says("has to be fetched by hand: unpack the Balanced Real Images", "coco_2014_vqa_multi")
    says("https://rrc.cvc.uab.es/?ch=17", "info_qa", "--from", str(tmp_path))
    says("infographicsVQA_train_v1.0.json is missing", "info_qa", "--from", str(tmp_path))
    says("has no split 'train'; it has test", "real_world_qa", "--from", str(tmp_path))
    says("give --from a file or folder", "chart_qa", "--from", str(tmp_path / "nowhere"))
    says("no parquet or JSON file of split 'train'", "chart_qa", "--from", str(tmp_path))
    Hub(tmp_path / "chart_qa").parquet([{"image": shown(1), "question": "x"}], image="image")
    says(
        "the rows have no column 'human_or_machine'; they have image, question",
        "chart_qa",
        "--from",
        str(tmp_path),
    )
    Hub(tmp_path / "pixmo_cap").parquet([{"url": "x"}])
    says("the rows have no column 'image_url'", "pixmo_cap", "--from", str(tmp_path))
    Hub(tmp_path / "tabwmp_da").json("problems_train.json", {"1": {"question": "q", "answer": "a"}})
    says("picture file missing (1)", "tabwmp_da", "--from", str(tmp_path))
    Hub(tmp_path / "text_vqa").parquet(
        [
            {
                "image_id": "i",
                "question_id": 1,
                "question": "q",
                "image": {"bytes": b"no picture", "path": ""},
                "flickr_300k_url": "",
                "answers": ["a"],
            }
        ]
    )
    says("picture cannot be read (1)", "text_vqa", "--from", str(tmp_path))
    says("--hold-out is for", "text_vqa", "--from", str(tmp_path), "--hold-out", "1")
    # one bad set does not stop the next
    Hub(tmp_path / "doc_qa").parquet(
        [{"questionId": "1", "question": "q", "image": shown(1), "answers": ["a"]}], image="image"
    )
    assert (
        run(
            tmp_path,
            "coco_2014_vqa_multi",
            "doc_qa",
            "--from",
            str(tmp_path),
            "--out",
            str(tmp_path / "out"),
        )
        == 1
    )
    assert len(read(tmp_path / "out" / "doc_qa-train")) == 1
    with pytest.raises(ValueError, match="an action 'fly'"):
        sources.android.action_text({"action_type": "fly"}, (1, 1))


def test_a_set_is_found_by_its_other_names(tmp_path: Path) -> None:
    assert sources.get("vqa2") is sources.ALL["coco_2014_vqa_multi"]
    assert len(sources.ALIASES) == sum(len(source.aliases) for source in sources.ALL.values())
    assert not sources.ALIASES.keys() & sources.ALL.keys()
    new = tmp_path / "coco_2014_vqa_multi-validation"
    old = tmp_path / "vqa2-validation"
    assert sources.folder(tmp_path, "vqa2", "validation") == new
    old.mkdir()
    assert sources.folder(tmp_path, "coco_2014_vqa_multi", "validation") == old
    new.mkdir()
    assert sources.folder(tmp_path, "coco_2014_vqa_multi", "validation") == new


def test_what_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, name: str | None, split: str) -> datasets.Dataset:
        asked.append((path, name, split))
        if path.startswith("allenai"):
            raise ConnectionError("no network")
        row = {"query": "q", "label": ["a"], "human_or_machine": 0, "image": shown(1)}
        row |= {
            "id": str(name),
            "question": "q",
            "options": "[]",
            "answer": "x",
            "question_type": "open",
        }
        return datasets.Dataset.from_list([{**row, "image_1": row["image"]}]).cast_column(
            "image", datasets.Image()
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    argv = ["chart_qa", "mmmu", "--split", "validation", "--out", str(tmp_path)]
    assert run(tmp_path, *argv) == 0
    assert asked[0] == ("HuggingFaceM4/ChartQA", None, "val")
    assert asked[1] == ("MMMU/MMMU", "Accounting", "validation")
    assert len(asked) == 31
    assert read(tmp_path / "chart_qa-validation")[0]["pixels"] == [picture(1)]
    assert len(read(tmp_path / "mmmu-validation")) == 30
    assert run(tmp_path, "pixmo_docs_charts", "--out", str(tmp_path)) == 1
    assert asked[-1] == ("allenai/pixmo-docs", "charts", "train")


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_become_png(kind: str) -> None:
    data = picture(6, kind=kind)
    name, converted = part(data, sources.Picture(data=data))
    assert name == "png"
    assert Image.open(io.BytesIO(converted)).format == "PNG"
    assert (load_image(converted) == load_image(data)).all()


def test_the_table_is_up_to_date() -> None:
    text = (ROOT / "docs" / "datasets.md").read_text()
    start = text.index("-->", text.index("<!-- table")) + 4
    assert text[start : text.index("\n<!-- end")] == table()
    for source in sources.ALL.values():
        assert source.hub or source.by_hand, source.name
        assert source.confirmed != (
            "not confirmed" in text.split(f"| `{source.name}` |")[1].split("\n")[0]
        )


def test_the_command_killed_and_given_again(server: Server, tmp_path: Path) -> None:
    rows = [
        {"image_url": server.url(f"lingering/{i}"), "caption": f"c{i}", "transcripts": []}
        for i in range(120)
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines)
    command = [
        sys.executable,
        "tools/download.py",
        "pixmo_cap",
        "--from",
        str(tmp_path / "rows.jsonl"),
    ]
    command += ["--out", str(tmp_path / "out"), "--workers", "2", "--samples-per-shard", "16"]
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "cache"),
        "TQDM_DISABLE": "1",
        "PYTHONPATH": str(ROOT),
    }
    child = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while child.poll() is None and sum(server.hits[f"/lingering/{i}"] for i in range(120)) < 10:
        time.sleep(0.01)
    child.kill()
    child.wait(10)
    assert not (tmp_path / "out" / "pixmo_cap-train").exists()
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "120 of 120 pictures (100.0 %)" in result.stdout
    assert (
        sum(server.hits[f"/lingering/{i}"] for i in range(120)) <= 120 + 4
    )  # at most those under way are asked for twice
    records = read(tmp_path / "out" / "pixmo_cap-train")
    assert [r["annotations"][0]["text"] for r in records] == [f"c{i}" for i in range(120)]
    assert len(list((tmp_path / "out" / "pixmo_cap-train").glob("*.tar"))) == 8
