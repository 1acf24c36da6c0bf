"""tools/make_shards.py on other people's data: nothing is lost, learnt or overwritten without a word."""

import functools
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
import pytest
from PIL import Image

from molmo_ds.cli import inspect_shards
from molmo_ds.cli import make_shards as tool
from molmo_ds.data.convert.tars import index_tar
from molmo_ds.data.decode import load_image
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_shards
from molmo_ds.testing.streams import picture, records

CAPTION = ["--style", "long_caption", "--workers", "1"]
VQA = {"style": "vqa2", "question": "Which?", "answer": "a boat"}
datasets.disable_progress_bars()


def encoded(kind: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(picture(1))).convert(mode).save(out, kind)
    return out.getvalue()


@functools.cache
def film() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        file.mux(
            stream.encode(
                av.VideoFrame.from_ndarray(np.zeros((32, 48, 3), np.uint8), format="rgb24")
            )
        )
        file.mux(stream.encode())
    return out.getvalue()


def lines(tmp_path: Path, *rows: Any) -> Path:
    (tmp_path / "a.jpg").write_bytes(picture(0))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    )
    return path


def good(**more: Any) -> dict[str, Any]:
    return {"image": "a.jpg", "annotations": [VQA]} | more


def jsonl(path: Path, out: Path, *options: str) -> list[dict]:
    tool.main(["jsonl", str(path), str(out), "--workers", "1", *options])
    return read(out)


def read(out: Path) -> list[dict]:
    shards = ShardSet(str(out))
    return [shards.read(i) for i in range(len(shards))]


def folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "in"


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


BAD_ROWS = [
    (b"{", "line 2: The line is not JSON"),
    (b"[1]", "line 2: The row is the list"),
    (b'{"image": "caf\xe9.jpg"}', "line 2: The line is not UTF-8 .byte 14 is 0xe9"),
    (b'{"image": "a.jpg", "image": "b.jpg", "annotations": []}', "the key 'image' comes twice"),
    (b'{"a":' * 5000, "nested too deeply"),
    (good(image="none.jpg"), "none.jpg cannot be read: No such file"),
    (good(image="."), "is no file"),
    (good(image="a\0.jpg"), "is no file name|cannot be read"),
    (good(image=5), "'image' is the number 5, but must be a picture's path"),
    (good(image=[None]), "holds null among its pictures"),
    (good(image="https://example.org/a.jpg"), "is the address .*fetch the pictures first"),
    (good(image="rows.jsonl"), "neither JPEG, PNG, WebP nor MP4"),
    (good(key=["k"]), "'key' is the list"),
    (good(key="k" * 200), "use a shorter key"),
    (good(key="/k"), "cannot be a key"),
    (good(key=""), "cannot be a key"),
    (good(key="a\nb"), "holds control characters; rename it"),
    (good(annotations="x"), "'annotations' is the text 'x', but must be a list"),
    (good(annotations=[]), "no annotations"),
    (good(annotations=[None]), "An annotation is null"),
    (good(annotations=[VQA, VQA | {"answers": 5}]), "annotation 2 of 2: 'answers' is the number 5"),
    (
        good(annotations=[{"style": "vqa2", "question": "Which?", "answer": None}]),
        "nothing to learn.*--questions",
    ),
    (good(num_frames=0, image="a.mp4"), "num_frames is 0"),
    (good(num_frames=True, image="a.mp4"), "num_frames is True"),
    (good(image="cut.mp4"), "The video cannot be decoded|The video has no frame"),
    (good(image=["a.mp4", "a.jpg"]), "one video or pictures, not both"),
    ({"img": "a.jpg", "annotations": [VQA]}, "column 'img' seems to hold a picture .*--image img"),
    (good(second="b.jpg"), "column 'second' seems to hold a picture"),
    ({"image": "a.jpg", "words": "x"}, "has no 'annotations'; give --style"),
    (
        {"image": "a.jpg", "style": "x", "question": "Q", "answer": ["a", "b"]},
        "'answer' is the list",
    ),
    (good(annotations=[VQA | {"question": "\ud83d"}]), "'question' is the text"),
    (good(metadata={"note": "\ud83d"}), "cannot be written as JSON"),
]


@pytest.mark.parametrize(("row", "sentence"), BAD_ROWS)
def test_a_bad_row_is_skipped_and_named(
    tmp_path: Path, row: Any, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.mp4").write_bytes(film())
    (tmp_path / "cut.mp4").write_bytes(film()[:100])
    path = lines(tmp_path, good(key="first"), row, good(key="last"))
    made = jsonl(path, tmp_path / "out")
    assert [record["__key__"] for record in made] == ["first", "last"]
    said = capsys.readouterr()
    [told] = [line for line in said.err.splitlines() if line.startswith("skipped ")]
    assert f"{path} line 2: " in told and "1 of 3 rows skipped" in said.out
    assert re.search(sentence, told)
    again = tmp_path / "strict"
    with pytest.raises(
        ValueError, match="1 of 3 rows cannot be used, more than --max-bad-share 0.0"
    ) as error:
        jsonl(path, again, "--max-bad-share", "0")
    assert told.removeprefix("skipped ") in str(error.value) and not again.exists()


def test_rows_of_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A byte-order mark, a JSON list, LLaVA's form, whole numbers, NaN: defined, and what is changed is said."""
    chat = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "A boat."}]
    rows = [
        {"id": "7", "image": "a.jpg", "conversations": chat},
        {"image": "a.jpg", "question": "How many?", "answer": 5},
    ]
    rows.append({"image": float("nan"), "images": ["a.jpg"], "answer": "y"})
    rows.append(
        {
            "image": "a.jpg",
            "question": "Which?",
            "answer": "x",
            "weight": None,
            "metadata": {"score": float("nan")},
        }
    )
    path = lines(tmp_path, b"\xef\xbb\xbf" + json.dumps(rows, indent=1).encode())
    made = jsonl(path, tmp_path / "out", "--style", "user_qa")
    assert [record["annotations"][0].get("answer") for record in made] == [None, "5", "y", "x"]
    assert all(record["images"] == ["jpg"] for record in made)
    assert made[0]["annotations"][0]["conversations"] == chat and made[3]["metadata"] == {
        "score": None
    }
    out = capsys.readouterr().out
    for said in (
        "columns not used: id; ",
        "1 whole numbers, written as text",
        "1 numbers that JSON does not have",
    ):
        assert said in out
    assert "1 annotations with an answer, but no question" in out
    raw = b"".join(ShardSet(str(tmp_path / "out")).parts(i)["json"] for i in range(4))
    assert b"NaN" not in raw
    inspect_shards.main([str(tmp_path / "out")])


def test_utf16_lines(tmp_path: Path) -> None:
    path = lines(tmp_path)
    path.write_bytes("\n".join(json.dumps(good(key=key)) for key in "ab").encode("utf-16"))
    assert [record["__key__"] for record in jsonl(path, tmp_path / "out")] == ["a", "b"]
    rows = [json.dumps(good(key=key, metadata="x\u2028y"), ensure_ascii=False) for key in "ab"]
    path.write_bytes("\r\n".join(rows).encode("utf-16"))
    made = jsonl(path, tmp_path / "out2")
    assert [record["metadata"] for record in made] == ["x\u2028y"] * 2


def test_packed_lines(tmp_path: Path) -> None:
    path = lines(tmp_path, good())
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match="line 1: The line is packed by gzip; unpack it first"):
        jsonl(path, tmp_path / "out")


def test_the_same_key_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path, good(key="a.b"), good(key="a_b"), good(key="A_b"))
    assert [
        record["__key__"] for record in jsonl(path, tmp_path / "out", "--samples-per-shard", "1")
    ] == ["a_b", "A_b"]
    assert f"{path} line 2: Key 'a_b' comes twice" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["1", "2"])
def test_shards_are_numbered_without_gaps(tmp_path: Path, workers: str) -> None:
    rows = [
        good(key=f"k{i}", image="a.jpg" if i not in (2, 3, 5) else "none.jpg") for i in range(8)
    ]
    path = lines(tmp_path, *rows)
    tool.main(
        [
            "jsonl",
            str(path),
            str(tmp_path / workers),
            "--workers",
            workers,
            "--samples-per-shard",
            "2",
        ]
    )
    assert sorted(p.name for p in (tmp_path / workers).glob("*.tar")) == [
        f"shard-{i:06d}.tar" for i in range(3)
    ]
    assert [record["__key__"] for record in read(tmp_path / workers)] == [
        "k0",
        "k1",
        "k4",
        "k6",
        "k7",
    ]
    assert sorted(p.name for p in (tmp_path / workers).iterdir() if p.name.startswith(".")) == [
        ".nv-meta"
    ]


def test_formats_become_png_or_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{kind}.{kind.lower()}": encoded(kind) for kind in ("GIF", "BMP", "TIFF", "PPM")}
    files |= {"upper.PNG": encoded("PNG"), "upper.TXT": b"a boat", "webp.webp": encoded("WEBP")}
    files |= {
        f"{kind}.txt": b"a boat"
        for kind in ("GIF", "BMP", "TIFF", "PPM", "webp", "phone", "cut", "empty", "wav")
    }
    files |= {
        "phone.heic": b"\0\0\0\x18ftypheic" + bytes(50),
        "cut.jpg": picture(3)[:200],
        "empty.png": b"",
    }
    files |= {
        "wav.webp": b"RIFF\0\0\0\0WAVE" + bytes(50),
        "paper.pdf": b"%PDF",
        "notes.txt": b"x",
        "alone.jpg": picture(4),
    }
    source = folder(tmp_path, files)
    (source / "lost.jpg").symlink_to("nowhere")
    (source / "dir.jpg").mkdir()
    tool.main(["folder", str(source), str(tmp_path / "out"), *CAPTION])
    made = {record["__key__"]: record for record in read(tmp_path / "out")}
    assert set(made) == {"GIF", "BMP", "TIFF", "PPM", "upper", "webp"}
    assert [made[name]["images"] for name in ("GIF", "BMP", "upper", "webp")] == [
        ["png"],
        ["png"],
        ["png"],
        ["webp"],
    ]
    assert np.array_equal(load_image(made["BMP"]["pixels"][0]), load_image(encoded("BMP")))
    said = capsys.readouterr()
    for words in (
        "4 pictures of other formats, written as PNG",
        "1 .pdf files",
        "1 .txt files that belong to no picture",
    ):
        assert words in said.out
    assert "1 folders named like pictures" in said.out and "6 of 12 rows skipped" in said.out
    for name in ("phone.heic", "cut.jpg", "empty.png", "wav.webp", "alone.jpg", "lost.jpg"):
        assert f"skipped {source / name}: " in said.err, name


def test_every_mode_is_stored_as_it_is_seen(tmp_path: Path) -> None:
    """A picture that becomes PNG has the very pixels that reading the file itself gives."""
    grey = np.random.RandomState(0).randint(0, 65536, (16, 24)).astype(np.uint16)
    pictures = {
        "I;16": Image.fromarray(grey),
        "L": Image.fromarray((grey >> 8).astype(np.uint8)),
        "1": None,
        "CMYK": None,
    }
    files = {}
    for i, (mode, made) in enumerate(pictures.items()):
        out = io.BytesIO()
        (made or Image.open(io.BytesIO(picture(1))).convert(mode)).save(out, "TIFF")
        files |= {f"{i}.tif": out.getvalue(), f"{i}.txt": b"a boat"}
    tool.main(["folder", str(folder(tmp_path, files)), str(tmp_path / "out"), *CAPTION])
    for i, record in enumerate(read(tmp_path / "out")):
        assert np.array_equal(load_image(record["pixels"][0]), load_image(files[f"{i}.tif"])), i
    high = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    assert np.array_equal(load_image(read(tmp_path / "out")[0]["pixels"][0]), high)


def test_files_of_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    junk = {
        "__MACOSX/._a.jpg": b"mac",
        "._a.jpg": b"mac",
        ".ipynb_checkpoints/a-checkpoint.jpg": picture(9),
    }
    junk |= {
        "@eaDir/a.jpg/SYNO.jpg": picture(8),
        "sub/Thumbs.db": b"x",
        "sub/desktop.ini": b"x",
        "sub/.DS_Store": b"x",
    }
    files = {
        "a.jpg": picture(1),
        "a.txt": b"a boat",
        "sub/b.jpg": picture(2),
        "sub/b.txt": b"\xef\xbb\xbfa bird",
    }
    tool.main(["folder", str(folder(tmp_path, files | junk)), str(tmp_path / "out"), *CAPTION])
    assert f"passed over: {len(junk)} files of other programs" in capsys.readouterr().out
    made = read(tmp_path / "out")
    assert [(one["__key__"], one["annotations"][0]["text"]) for one in made] == [
        ("a", "a boat"),
        ("sub/b", "a bird"),
    ]
    mac = [
        ("./._1.jpg", b"mac"),
        ("./1.jpg", picture(1)),
        ("./._1.txt", b"mac"),
        ("./1.txt", b"a boat"),
    ]
    mac += [
        ("__MACOSX/._2.jpg", b"mac"),
        ("2.jpg", picture(2)),
        ("2.txt", b"a bird"),
        ("@eaDir/2.txt", b"x"),
    ]
    tar_of(tmp_path / "mac.tar", mac)
    tar_of(tmp_path / "._mac.tar", [])
    tool.main(["tars", str(tmp_path / "*.tar"), str(tmp_path / "out2"), *CAPTION])
    assert [one["__key__"] for one in read(tmp_path / "out2")] == ["1", "2"]
    assert "passed over: 4 files of other programs" in capsys.readouterr().out


def test_tars_that_hold_records_are_indexed_in_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, parts = next((key, parts) for key, parts in records(9) if "jpg" in parts)
    sound = [(f"{key}.{name}", data) for name, data in parts.items()]
    bad = json.dumps({"annotations": [VQA | {"answer_index": "B"}]}).encode()
    source = tmp_path / "ix"
    source.mkdir()
    tar_of(
        source / "a.tar",
        [sound[0], ("._" + sound[1][0], b"mac"), *sound[1:], ("x.json", bad), ("x.cls", b"5")],
    )
    (source / "._a.tar").write_bytes(b"mac")
    (source / "b.tar").mkdir()
    tool.main(["index", str(source), "--workers", "1"])
    said = capsys.readouterr()
    for words in (
        "2 samples in 1 shards",
        "1 of them cannot be used",
        "2 files of other programs",
        "1 .cls members",
    ):
        assert words in said.out
    assert f"skipped {source}/a.tar: sample 'x': 'answer_index' is the text 'B'" in said.err
    assert len(read(source)) == 2
    with pytest.raises(SystemExit, match="1 faults"):
        inspect_shards.main([str(source)])
    assert "sample 'x': 'answer_index' is the text 'B'" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"1 of 2 samples cannot be used.*a.tar: sample 'x'"):
        tool.main(["index", str(source), "--workers", "1", "--max-bad-share", "0"])
    tar_of(source / "c.tar", [("y.json", b"[1, 2]")])
    with pytest.raises(
        ValueError,
        match=r"1 of 2 tars cannot be indexed.*c.tar: Sample 'y' is not in the record format",
    ):
        tool.main(["index", str(source), "--workers", "1"])


def test_members_of_other_tars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apart = [
        ("1.jpg", picture(1)),
        ("2.gif", encoded("GIF")),
        ("1.txt", b"one"),
        ("2.txt", b"two"),
        ("2.cls", b"5"),
    ]
    broken = [
        ("3.jpg", picture(3)),
        ("3.json", b"[1, 2]"),
        ("4.jpg", picture(4)),
        ("4.json", b"{"),
        ("README", b"x"),
    ]
    broken += [
        ("5.jpg", picture(5)),
        ("5.txt", b"caf\xe9"),
        ("6.txt", b"no picture"),
        ("7.jpg", picture(6)),
        ("8.npy", b"x"),
    ]
    broken += [("9.json", json.dumps({"images": ["jpg"], "annotations": [VQA]}).encode())]
    broken += [("9a.json", json.dumps({"text": "x", "file": "9a.jpg"}).encode())]
    tar_of(tmp_path / "old.tar", apart + broken)
    tool.main(["tars", str(tmp_path / "old.tar"), str(tmp_path / "out"), *CAPTION])
    made = read(tmp_path / "out")
    texts = {one["__key__"]: (one["images"], one["annotations"][0]["text"]) for one in made}
    assert texts == {"1": (["jpg"], "one"), "2": (["png"], "two"), "6": ([], "no picture")}
    said = capsys.readouterr()
    for words in (
        "1 samples without a picture",
        "1 .cls members, not used",
        "1 members without an extension",
        "1 .npy",
    ):
        assert words in said.out
    for key, why in {
        "3": "number 1",
        "4": "Its .json is not JSON",
        "5": "Its .txt is not UTF-8",
        "7": "no 'annotations'",
    }.items():
        assert f"old.tar: sample '{key}': " in said.err and why in said.err
    assert (
        "sample '9': It names the image jpg" in said.err
        and "sample '9a': The column 'file'" in said.err
    )


def damaged_tar(path: Path, damage: str) -> list[str]:
    """40 samples, a picture and a text each; the 31st is damaged. The keys before it."""
    keys = [f"k{i:02d}" for i in range(40)]
    members = [(f"{key}.jpg", picture(int(key[1:]))) for key in keys]
    texts = [(f"{key}.txt", f"a boat {key}".encode()) for key in keys]
    tar_of(path, [one for pair in zip(members, texts) for one in pair])
    with tarfile.open(path) as tar:
        place = tar.getmember("k30.txt" if damage == "header" else "k30.jpg")
    data = bytearray(path.read_bytes())
    if damage == "zeros":
        data[place.offset : place.offset + 512] = bytes(512)
    else:
        data[place.offset + 3] ^= 1
    path.write_bytes(data)
    return keys[:30]


DAMAGES = {"header": "corrupt header", "zeros": "more after an end mark"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tar_loses_its_end_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """What was before the damage and the other tars are written; the lost bytes count as the rows that they held."""
    before = damaged_tar(tmp_path / "a.tar", damage)
    # the sample before the damage goes with it where nothing of the damaged one is there
    kept = before if damage == "header" else before[:-1]
    tar_of(tmp_path / "b.tar", [("z.jpg", picture(1)), ("z.txt", b"a bird")])
    arguments = ["tars", str(tmp_path / "*.tar"), str(tmp_path / "out"), *CAPTION]
    with pytest.raises(ValueError, match=r"rows cannot be used, more than --max-bad-share 0.001"):
        tool.main(arguments)
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    tool.main([*arguments, "--max-bad-share", "0.002"])
    assert [one["__key__"] for one in read(tmp_path / "out")] == [*kept, "z"]
    said = capsys.readouterr()
    [line] = [line for line in said.err.splitlines() if line.startswith("skipped")]
    assert f"{tmp_path}/a.tar" in line and DAMAGES[damage] in line
    last = "k30.jpg" if damage == "header" else "k29.txt"
    assert f"From its member {last} on" in line
    # 10 of 40 samples of 2,560 bytes lie behind it, and up to 10,240 bytes that fill the tar
    rows = int(re.search(r"bytes are lost, counted as (\d+) rows", line)[1])
    assert 10 <= rows <= 15
    assert f"{rows} of {rows + len(kept) + 1} rows skipped" in said.out


def test_a_damaged_tar_whose_loss_is_unknown_stops_the_conversion(tmp_path: Path) -> None:
    """It was cut, no sample is whole before the damage, or what is there may lack its picture."""
    whole = [("1.txt", b"a"), ("2.txt", b"b"), ("1.jpg", picture(1)), ("2.jpg", picture(2))]
    tar_of(tmp_path / "texts_first.tar", whole)
    with tarfile.open(tmp_path / "texts_first.tar") as tar:
        place = tar.getmember("1.jpg").offset
    data = (tmp_path / "texts_first.tar").read_bytes()
    cut = data[: place + 520]
    hole = data[:place] + bytes(512) + data[place + 512 :]
    for name, damaged, said in (
        ("cut", cut, "is truncated"),
        ("texts_first", hole, "has more after an end mark"),
        ("junk", b"junk" * 1000, "is truncated"),
    ):
        (tmp_path / f"{name}.tar").write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}.tar {said}"):
            tool.main(["tars", str(tmp_path / f"{name}.tar"), str(tmp_path / "out"), *CAPTION])


def test_names_that_are_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path, {"a.jpg": picture(1), "a.txt": b"a boat"})
    name = os.fsdecode(b"caf\xe9")
    (source / f"{name}.jpg").write_bytes(picture(2))
    (source / f"{name}.txt").write_bytes(b"a boat")
    tool.main(["folder", str(source), str(tmp_path / "out"), *CAPTION])
    said = capsys.readouterr().err
    assert "caf\\udce9.jpg" in said and "not UTF-8" in said and len(read(tmp_path / "out")) == 1
    tar_of(tmp_path / "t.tar", [(f"{name}.json", json.dumps({"annotations": [VQA]}).encode())])
    with pytest.raises(
        ValueError, match=r"t.tar has a member whose name 'caf\\udce9' is not UTF-8"
    ):
        index_tar(tmp_path / "t.tar")


def save(tmp_path: Path, rows: list[dict[str, Any]], **images: Any) -> str:
    text = {name: datasets.Value("string") for name in ("question", "answer")}
    features = datasets.Features(text | images)
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "hf"))
    return str(tmp_path / "hf")


def dataset(source: str, out: Path, *options: str) -> list[dict]:
    tool.main(["dataset", source, str(out), "--style", "vqa2", "--workers", "1", *options])
    return read(out)


def test_pictures_of_other_columns(tmp_path: Path) -> None:
    shown = [{"bytes": picture(i), "path": None} for i in range(2)]
    row = {"question": "Which?", "answer": "a boat"}
    rows = [
        row | {"image_1": shown[0], "image_2": None, "thumb": shown[1]},
        row | {"image_1": shown[0], "image_2": shown[1]},
    ]
    source = save(
        tmp_path, rows, image_1=datasets.Image(), image_2=datasets.Image(), thumb=datasets.Image()
    )
    with pytest.raises(
        ValueError, match="image_1, image_2, thumb, which would be lost; say --image"
    ):
        dataset(source, tmp_path / "out")
    with pytest.raises(ValueError, match="bytes in thumb, which"):
        dataset(source, tmp_path / "out", "--image", "image_1", "image_2")
    with pytest.raises(ValueError, match="has no column 'image_3'"):
        dataset(source, tmp_path / "out", "--image", "image_3")
    made = dataset(source, tmp_path / "out", "--image", "image_1", "image_2", "--without", "thumb")
    assert [one["pixels"] for one in made] == [[picture(0)], [picture(0), picture(1)]]


def test_classes_in_lists_are_learnt_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their numbers looked like answers; those of an answer_index are what it means."""
    kinds = datasets.ClassLabel(names=["cat", "dog"])
    asked = {"question": "Which?", "options": [1, 0], "answer_index": 1, "style": "vqa2"}
    rows = [{"question": "Who?", "seen": [0, 1, 1], "key": "mine", "annotations": None}]
    rows += [{"question": None, "seen": None, "key": "two", "annotations": [asked]}]
    inner = {"question": datasets.Value("string"), "style": datasets.Value("string")}
    inner |= {"options": datasets.List(kinds), "answer_index": kinds}
    rows = [row | {"answer": None} for row in rows]
    columns = {"seen": datasets.List(kinds), "annotations": datasets.List(inner)}
    source = save(tmp_path, rows, **columns, key=datasets.Value("string"))
    made = dataset(source, tmp_path / "out", "--map", "answers=seen")
    assert made[0]["annotations"][0]["answers"] == ["cat", "dog", "dog"]
    assert made[1]["annotations"][0]["options"] == ["dog", "cat"]
    assert made[1]["annotations"][0]["answer_index"] == 1
    said = capsys.readouterr().out
    assert "columns not used: key" in said and "whole numbers" not in said


def test_pictures_that_a_folders_json_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{name}.jpg": picture(i) for i, name in enumerate("abc")}
    named = {"a": ["a.jpg", "b.jpg"], "b": ["jpg"], "c": ["c.jpg"]}
    files |= {
        f"{key}.json": json.dumps(VQA | {"images": images}).encode()
        for key, images in named.items()
    }
    options = [*CAPTION, "--max-bad-share", "1"]
    tool.main(["folder", str(folder(tmp_path, files)), str(tmp_path / "out"), *options])
    assert [one["__key__"] for one in read(tmp_path / "out")] == ["b", "c"]
    assert "is the list ['a.jpg', 'b.jpg'], but a sample of a folder" in capsys.readouterr().err


def test_two_texts_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"a.jpg": picture(1), "a.txt": b"small", "a.TXT": b"large"}
    tool.main(["folder", str(folder(tmp_path, files)), str(tmp_path / "out"), *CAPTION])
    assert read(tmp_path / "out")[0]["annotations"][0]["text"] == "small"
    assert "passed over: 1 .txt files whose name another one" in capsys.readouterr().out


def test_our_own_records_through_arrow(tmp_path: Path) -> None:
    """Arrow gives every annotation all keys, most of them null."""
    rows = [
        [VQA, {"style": "user_qa", "messages": ["And?", "a bird"], "weight": 0.5}],
        [VQA | {"points": None}],
    ]
    table = [{"image": {"bytes": picture(0), "path": None}, "annotations": row} for row in rows]
    datasets.Dataset.from_list(table).to_parquet(str(tmp_path / "train.parquet"))
    tool.main(["dataset", str(tmp_path), str(tmp_path / "out"), "--workers", "1"])
    assert [one["annotations"] for one in read(tmp_path / "out")] == [rows[0], [VQA]]
    inspect_shards.main([str(tmp_path / "out")])


def test_data_sets_that_cannot_be_read(tmp_path: Path) -> None:
    source = save(tmp_path, [{"question": "Which?", "answer": "a boat"}])
    datasets.DatasetDict({"dev": datasets.load_from_disk(source)}).save_to_disk(
        str(tmp_path / "dict")
    )
    with pytest.raises(ValueError, match="has no split 'train'; give --split, one of dev"):
        dataset(str(tmp_path / "dict"), tmp_path / "out")
    assert len(dataset(str(tmp_path / "dict"), tmp_path / "out", "--split", "dev")) == 1
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises((ValueError, OSError)):
        dataset(str(tmp_path / "broken"), tmp_path / "out2")


OPTIONS = [
    (["--map", "anwser=label"], "knows no field 'anwser'"),
    (["--map", "answer=a", "answer=b"], "fills the field 'answer' twice"),
    (["--workers", "0"], "must be at least 1"),
    (["--samples-per-shard", "0"], "must be at least 1"),
    (["--max-bad-share", "nan"], "must lie between 0 and 1"),
    (["--name", "a/b"], "use letters"),
    (["--split", "train"], "--split says nothing about jsonl"),
]


@pytest.mark.parametrize(("options", "sentence"), OPTIONS)
def test_options_that_say_nothing_are_refused(
    tmp_path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tool.main(["jsonl", str(lines(tmp_path, good())), str(tmp_path / "out"), *options])
    assert sentence in capsys.readouterr().err


def test_a_column_that_no_row_has(tmp_path: Path) -> None:
    path = lines(tmp_path, {"image": "a.jpg", "question": "Which?", "answer": "x"})
    for options in (["--image", "img", "image"], ["--map", "label=labl"]):
        with pytest.raises(ValueError, match="names the column '(img|labl)', which no row has"):
            jsonl(path, tmp_path / "out", "--style", "vqa2", *options)
    assert not (tmp_path / "out").exists()


def test_a_conversion_that_ended_on_a_fault_starts_again(tmp_path: Path) -> None:
    path = lines(
        tmp_path, *[good(key=f"k{i}") for i in range(4)], good(image="late.jpg", key="late")
    )
    options = ["--max-bad-share", "0", "--samples-per-shard", "2"]
    write_shards(records(3), tmp_path / "out", "mine")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"1 of 5 rows .*line 5: .*late.jpg"):
        jsonl(path, tmp_path / "out", *options)
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
    (tmp_path / "late.jpg").write_bytes(picture(5))
    assert len(jsonl(path, tmp_path / "out", *options)) == 3 + 5
    assert all(p.read_bytes() == data for p, data in before.items() if ".nv-meta" not in p.parts)
    with pytest.raises(ValueError, match="already holds shards named shard"):
        jsonl(path, tmp_path / "out", *options)


def test_a_killed_conversion_starts_again(tmp_path: Path) -> None:
    path = lines(tmp_path, *[good(key=f"k{i}") for i in range(3000)])
    out = tmp_path / "out"
    arguments = [
        "jsonl",
        str(path),
        str(out),
        "--workers",
        "1",
        "--samples-per-shard",
        "5",
        "--name",
        "n",
    ]
    killed = subprocess.Popen(
        [sys.executable, "tools/make_shards.py", *arguments], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob(".n.unfinished/*.tar"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(ValueError, match="Another process is writing shards named n"):
        tool.main(arguments)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not list(out.glob("*.tar")) and list(out.glob(".n.unfinished/*.tar"))
    with pytest.raises(ValueError, match="has no index"):
        ShardSet(str(out))
    path.write_bytes(b"\n".join(path.read_bytes().splitlines()[:12]))
    assert len(jsonl(path, out, "--samples-per-shard", "5", "--name", "n")) == 12
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == [".nv-meta"]


def test_a_conversion_that_was_stopped_while_it_moved_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lines(tmp_path, *[good(key=f"k{i}") for i in range(6)])
    out = tmp_path / "out"
    jsonl(path, tmp_path / "whole", "--samples-per-shard", "2")
    jsonl(path, out, "--samples-per-shard", "2")
    staging = out / ".shard.unfinished"  # as it is left by a kill between two moves
    staging.mkdir()
    (staging / "complete").touch()
    for name in (
        "shard-000001.tar.idx",
        "shard-000001.tar",
        "shard-000002.tar.parquet",
        "shard-000002.tar.idx",
        "shard-000002.tar",
    ):
        os.replace(out / name, staging / name)
    for meta in (out / ".nv-meta").iterdir():
        meta.unlink()
    with pytest.raises(ValueError, match="is whole: the shards of an earlier run"):
        jsonl(path, out, "--samples-per-shard", "2")
    assert not staging.exists() and read(out) == read(tmp_path / "whole")
