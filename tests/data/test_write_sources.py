"""tools/make_shards.py and tools/inspect_shards.py: from every source to the same record format."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import pytest
import webdataset

from molmo_ds.cli import inspect_shards
from molmo_ds.cli import make_shards as tool
from molmo_ds.data.convert.inspection import differences
from molmo_ds.data.convert.origins import find_tars
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.testing.streams import make_shards, picture, records

EXPECTED = [{"style": "vqa2", "question": f"which {i}?", "answer": f"the {i}"} for i in range(7)]
RECORD = json.dumps({"images": ["jpg"], "annotations": EXPECTED[:1]}).encode()


def check(folder: Path, keys: list[str], names: str = "jpg") -> ShardSet:
    shards = ShardSet(str(folder))
    read = [shards.read(i) for i in range(len(shards))]
    assert [record["__key__"] for record in read] == keys
    assert [record["annotations"] for record in read] == [[annotation] for annotation in EXPECTED]
    assert [record["pixels"] for record in read] == [[picture(i)] for i in range(7)]
    assert all(record["images"] == [names] for record in read)
    return shards


def test_folder_jsonl_and_tars(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    lines = []
    for i, annotation in enumerate(EXPECTED):
        (pictures / f"p.{i}.jpg").write_bytes(picture(i))
        (pictures / f"p.{i}.json").write_text(json.dumps({"annotations": [annotation]}))
        lines.append(
            json.dumps(
                {
                    "images": [f"p.{i}.jpg"],
                    "query": annotation["question"],
                    "answer": annotation["answer"],
                }
            )
        )
    (pictures / "all.jsonl").write_text("\n".join(lines))
    tool.main(
        ["folder", str(pictures), str(tmp_path / "a"), "--samples-per-shard", "3", "--workers", "2"]
    )
    check(tmp_path / "a", [f"p_{i}" for i in range(7)])
    assert sorted(p.name for p in (tmp_path / "a").glob("*.tar")) == [
        f"shard-{i:06d}.tar" for i in range(3)
    ]
    tool.main(
        [
            "jsonl",
            str(pictures / "all.jsonl"),
            str(tmp_path / "b"),
            "--style",
            "vqa2",
            "--map",
            "question=query",
            "--workers",
            "1",
        ]
    )
    check(tmp_path / "b", [f"{i:09d}" for i in range(7)])
    tool.main(
        [
            "tars",
            str(tmp_path / "a/*.tar"),
            str(tmp_path / "c"),
            "--workers",
            "1",
            "--samples-per-shard",
            "3",
        ]
    )
    # nothing depends on the number of workers or the way
    for path in sorted((tmp_path / "a").rglob("*")):
        assert (
            path.is_dir()
            or path.read_bytes() == (tmp_path / "c" / path.relative_to(tmp_path / "a")).read_bytes()
        )


@pytest.mark.parametrize("options", [[], ["--streaming"]])
def test_hugging_face_data_set(tmp_path: Path, options: list[str]) -> None:
    rows = {
        "image": [{"bytes": picture(i), "path": None} for i in range(7)],
        "query": [annotation["question"] for annotation in EXPECTED],
        "label": [annotation["answer"] for annotation in EXPECTED],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "query": datasets.Value("string"),
            "label": datasets.Value("string"),
        }
    )
    (tmp_path / "hf").mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(str(tmp_path / "hf" / "train.parquet"))
    arguments = [
        "dataset",
        str(tmp_path / "hf"),
        str(tmp_path / "out"),
        "--style",
        "vqa2",
        "--workers",
        "1",
        *options,
    ]
    tool.main([*arguments, "--map", "question=query", "answer=label"])
    check(tmp_path / "out", [f"{i:09d}" for i in range(7)])


def test_lists_of_pictures_and_classes_of_a_data_set(tmp_path: Path) -> None:
    rows = {
        "images": [[{"bytes": picture(0), "path": None}, {"bytes": picture(1), "path": None}], []],
        "label": [1, 0],
        "question": ["which?", "and now?"],
    }
    label = datasets.ClassLabel(names=["cat", "dog"])
    features = {
        "images": datasets.List(datasets.Image()),
        "label": label,
        "question": datasets.Value("string"),
    }
    datasets.Dataset.from_dict(rows, datasets.Features(features)).save_to_disk(str(tmp_path / "hf"))
    arguments = [
        "dataset",
        str(tmp_path / "hf"),
        str(tmp_path / "out"),
        "--style",
        "user_qa",
        "--workers",
        "1",
    ]
    tool.main([*arguments, "--map", "answer=label"])
    shards = ShardSet(str(tmp_path / "out"))
    assert shards.read(0)["images"] == ["0.jpg", "1.jpg"] and shards.read(0)["pixels"] == [
        picture(0),
        picture(1),
    ]
    assert [shards.read(i)["annotations"][0]["answer"] for i in (0, 1)] == ["dog", "cat"]
    assert shards.read(1)["images"] == []


def test_captions_of_other_tars(tmp_path: Path) -> None:
    """What img2dataset writes: the caption in a .txt, and in a .json among what it knows of the picture."""
    with webdataset.TarWriter(str(tmp_path / "old.tar")) as writer:
        for i in range(3):
            known = {"caption": f"caption {i}", "key": f"{i}", "status": "success", "exif": "{}"}
            known |= {"url": "http://a.org/b.jpg", "error_message": None, "width": 64}
            sample = {"jpg": picture(i), "txt": f"caption {i}", "json": known}
            writer.write({"__key__": f"x/{i}", **sample})
    tool.main(
        [
            "tars",
            str(tmp_path / "old.tar"),
            str(tmp_path / "out"),
            "--style",
            "long_caption",
            "--workers",
            "1",
        ]
    )
    shards = ShardSet(str(tmp_path / "out"))
    assert [shards.read(i)["annotations"] for i in range(3)] == [
        [{"style": "long_caption", "text": f"caption {i}"}] for i in range(3)
    ]


def test_several_pictures_and_text_only(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(picture(i))
    two = {
        "key": "two",
        "images": ["0.jpg", "1.jpg"],
        "annotations": [{"style": "vqa2", "question": "a", "answer": "b"}],
    }
    none = {
        "key": "none",
        "annotations": [{"style": "text_sft", "messages": ["a", "b"]}],
        "metadata": {"source": "me"},
    }
    (tmp_path / "x.jsonl").write_text(json.dumps(two) + "\n\n" + json.dumps(none) + "\n")
    tool.main(["jsonl", str(tmp_path / "x.jsonl"), str(tmp_path / "out"), "--workers", "1"])
    shards = ShardSet(str(tmp_path / "out"))
    assert shards.read(0)["images"] == ["0.jpg", "1.jpg"] and shards.read(0)["pixels"] == [
        picture(0),
        picture(1),
    ]
    assert shards.read(1)["images"] == [] and shards.read(1)["metadata"] == {"source": "me"}


def test_indexing_in_place(tmp_path: Path) -> None:
    make_shards(tmp_path, 9)
    for path in [*tmp_path.glob("*.tar.*"), *(tmp_path / ".nv-meta").iterdir()]:
        path.unlink()
    with pytest.raises(ValueError, match="has no index"):
        ShardSet(str(tmp_path))
    tool.main(["index", str(tmp_path), "--workers", "1"])
    shards = ShardSet(str(tmp_path))
    assert [shards.parts(i) for i in range(9)] == [parts for _, parts in records(9)]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"images": ["0.jpg"], "words": "x"}', "has no 'annotations'; give --style"),
        ('{"images": ["none.jpg"], "annotations": []}', "none.jpg"),
        ("{", "x.jsonl line 1: The line is not JSON"),
        ('{"images": ["x.jsonl"], "annotations": []}', "neither JPEG, PNG, WebP nor MP4"),
        ('{"key": "a", "annotations": []}', "no annotations"),
    ],
)
def test_refusals_leave_no_data_set(tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / "0.jpg").write_bytes(picture(0))
    (tmp_path / "x.jsonl").write_text(line)
    with pytest.raises((ValueError, OSError), match=sentence):
        tool.main(["jsonl", str(tmp_path / "x.jsonl"), str(tmp_path / "out"), "--workers", "1"])
    assert not (tmp_path / "out/.nv-meta").exists()


def test_inspection_prints_what_is_there_and_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_shards(tmp_path / "good", 12)
    inspect_shards.main([str(tmp_path / "good")])
    out = capsys.readouterr().out
    assert "12" in out and "vqa2" in out and "which 0?" in out and "every member is sound" in out
    tar = tmp_path / "good/s-000000.tar"
    data = bytearray(tar.read_bytes())
    data[520] ^= 1
    tar.write_bytes(data)
    run = [sys.executable, "tools/inspect_shards.py", str(tmp_path / "good")]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "FAULT" in done.stdout and "1 faults in" in done.stderr


def test_tars_listed_as_webdataset_lists_them(tmp_path: Path) -> None:
    for i in range(3):
        with webdataset.TarWriter(str(tmp_path / f"old-{i}.tar")) as writer:
            writer.write({"__key__": str(i), "jpg": picture(i), "txt": f"caption {i}"})
    found = find_tars(f"{tmp_path}/old-{{0..2}}.tar")
    assert found == sorted(tmp_path.glob("*.tar"))
    assert find_tars(f"{tmp_path}/old-{{2,0}}.tar") == [found[2], found[0]]
    with pytest.raises(
        ValueError, match=r"There is no tar .*old-3.tar, which .*\{0..3\}.tar lists with 3 others"
    ):
        find_tars(f"{tmp_path}/old-{{0..3}}.tar")
    odd = tmp_path / "{0..1}.tar"
    odd.write_bytes(found[0].read_bytes())
    assert find_tars(str(odd)) == [odd], "a file of that name is no list"


def test_inspection_says_what_other_readers_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_shards(tmp_path / "ours", 25)
    assert not list(differences(ShardSet(str(made)))), "webdataset reads what we write"
    strange = tmp_path / "strange"
    strange.mkdir()
    with tarfile.open(strange / "s.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (
            ("a.jpg", picture(1)),
            ("__MACOSX/b.jpg", b"a Mac's"),
            ("a.json", RECORD),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    tool.main(["index", str(strange), "--workers", "1"])
    inspect_shards.main([str(strange)])
    told = capsys.readouterr().out
    assert "webdataset reads 'a' with jpg where the index has 'a' with jpg, json" in told
    assert "every member is sound" in told
