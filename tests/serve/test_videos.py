"""Videos of a request: the tokens and pixels of training, and a sentence for each that is refused."""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from PIL import Image
from safetensors.torch import load

from molmo_ds.batch import Sample
from molmo_ds.cli import run
from molmo_ds.data.sample.record import film_of
from molmo_ds.eval.clients.client import Ask
from molmo_ds.eval.clients.own_client import OwnClient
from molmo_ds.eval.clients.server_client import ServerClient
from molmo_ds.infer import load as load_answerer
from molmo_ds.serve import protocol
from molmo_ds.serve.media import decode
from molmo_ds.serve.prompts import Prompts
from molmo_ds.testing.parrot import Parrot
from molmo_ds.testing.serving import Server, post, weights_folder
from molmo_ds.testing.small_videos import film, png

QUESTION = "How many birds are there?"
VIDEO = film(range(0, 2000, 100))  # two seconds
FRAMES = [png(grey) for grey in (0, 60, 120, 180)]
RECORDS = {  # what a shard says of a video
    "whole": {"images": ["mp4"], "pixels": [VIDEO]},
    "part": {
        "images": ["mp4"],
        "pixels": [VIDEO],
        "clip": [0.4, 1.7],
        "num_frames": 2,
        "subtitles": [[0.0, 0.3, "a bird"], [1.2, 1.3, "another"]],
    },
    "frames": {"images": [f"{i}.png" for i in range(4)], "pixels": FRAMES, "fps": 2.0},
}


@pytest.fixture(scope="module")
def molmo2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a micro Molmo2, whose tokenizer knows no chat."""
    folder = weights_folder(tmp_path_factory.mktemp("molmo2"), 1024, "tiny_molmo2")
    with open(folder / "config.yaml", "a") as said:
        said.write("data: {prompts: {message_format: role}}\n")
    (folder / "checksums.json").unlink()
    return folder


@pytest.fixture(scope="module")
def prompts(molmo2: Path) -> Prompts:
    return Prompts(str(molmo2), None, max_pixels=1_000_000, max_frames=16)


def content(url: str, **keys: Any) -> list[dict[str, Any]]:
    return [
        {"type": "video_url", "video_url": {"url": url, **keys}},
        {"type": "text", "text": QUESTION},
    ]


def url_of(data: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def body(url: str, **keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content(url, **keys)}]}


def made_by_training(prompts: Prompts, record: dict[str, Any]) -> Sample:
    """The sample that learns `x` from the same record."""
    style = prompts.builder.prompts.free_style
    asked = {"style": style, "question": QUESTION, "answer": "x"}
    return prompts.builder.build({**record, "annotations": [asked]}, RandomState(0))


def assert_alike(prompt: Sample, trained: Sample) -> None:
    """All that a prompt holds is what training's sample begins with."""
    length = len(prompt.input_ids)
    assert length < len(trained.input_ids)
    for name in ("input_ids", "position_ids", "branch_ids", "image_ids"):
        assert torch.equal(getattr(prompt, name), getattr(trained, name)[:length]), name
    for name in ("images", "windows", "image_positions", "image_masks"):
        assert torch.equal(getattr(prompt, name), getattr(trained, name)), name


@pytest.mark.parametrize("name", RECORDS)
def test_a_video_has_the_tokens_of_training(name: str, prompts: Prompts, server: Server) -> None:
    """By the server's builder, from what an evaluation's client sends it."""
    record = RECORDS[name]
    trained = made_by_training(prompts, record)
    asked = {"style": "demo", "question": QUESTION}
    ask = Ask(
        id="a",
        pictures=tuple(record["pixels"]),
        annotation=asked,
        seed=0,
        max_new_tokens=2,
        film=film_of(record),
    )
    sent = []
    client = ServerClient(server.url)
    said = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}
    client._call = lambda path, request: sent.append(request) or said
    (reply,) = client.replies([ask])
    assert reply.text == "x" and reply.prompt.startswith(f"VIDEO[{len(record['pixels'])}] ")
    request = protocol.read(json.dumps({**sent[0], "style": "demo"}).encode())
    files = decode(request.video.url, "video")
    assert files == record["pixels"]
    prompt = Sample(**load(prompts.make(request, files).data))
    assert_alike(prompt, trained)
    assert len(prompt.images) == {"whole": 5, "part": 2, "frames": 4}[name]


def test_an_evaluation_of_a_checkpoint_sees_the_same(molmo2: Path, prompts: Prompts) -> None:
    answerer = load_answerer.load(molmo2)
    record = RECORDS["part"]
    films = [film_of(record), {**film_of(record), "clip": [0.0, 1.0]}]  # of one file
    asks = [
        Ask(
            id=str(number),
            pictures=tuple(record["pixels"]),
            annotation={"style": "demo", "question": QUESTION},
            seed=0,
            max_new_tokens=2,
            film=film,
        )
        for number, film in enumerate(films)
    ]
    replies = {reply.id: reply for reply in OwnClient.of(answerer, 2, 1).replies(asks)}
    shown = [replies[name].prompt.split("subtitle")[0] for name in ("0", "1")]
    # the middle of a window of 3 x 3 patches: two by two windows a frame
    windows = int((prompts.builder.images.frame_windows >= 0).any(1).sum())
    image = f"IMAGE[{windows}]"
    assert shown == [f"0.0 {image} 1.3 {image}", f"0.0 {image} 1.0 {image}"]


def test_over_http(server: Server, parrot: Parrot) -> None:
    """Molmo of the first generation: each frame is a picture."""
    status, answer = post(server.url, body(url_of(VIDEO), num_frames=3))
    assert status == 200, answer
    assert len(parrot.asked[-1].prompt.images) == 3
    joined = url_of(FRAMES[0], "video/jpeg") + "," + base64.b64encode(FRAMES[1]).decode()
    assert post(server.url, body(joined, fps=1))[0] == 200
    assert len(parrot.asked[-1].prompt.images) == 2


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({"url": "http://127.0.0.1/a.mp4"}, 400, "--allowed-media-domains"),
        ({"url": url_of(FRAMES[0], "image/png")}, 400, "video/mp4"),
        ({"url": url_of(VIDEO[:40])}, 400, "cannot be decoded"),
        ({"num_frames": 500}, 400, "500 frames, more than the 384 allowed"),
        ({"num_frames": 0}, 400, "num_frames"),
        ({"clip": [3.0, 4.0]}, 400, "clip"),
        ({"clip": "all"}, 400, "clip"),
        ({"subtitles": [[0, "x"]]}, 400, "subtitles"),
        ({"url": url_of(FRAMES[0], "video/jpeg") + ",AAAA"}, 400, "fps"),
        ({"fps": 3}, 400, "picture"),
    ],
)
def test_refused(changes: dict[str, Any], status: int, word: str, server: Server) -> None:
    given, answer = post(server.url, body(**{"url": url_of(VIDEO), **changes}))
    sentence = answer["error"]["message"]
    assert (given, word in sentence) == (status, True), sentence
    assert sentence.endswith(".") and "\n" not in sentence


def test_one_video_or_pictures(server: Server) -> None:
    picture = {"type": "image_url", "image_url": url_of(FRAMES[0], "image/png")}
    for more in (picture, content(url_of(VIDEO))[0]):
        both = {"messages": [{"role": "user", "content": [more, *content(url_of(VIDEO))]}]}
        status, answer = post(server.url, both)
        assert status == 400 and "one video" in answer["error"]["message"]


def test_too_many_pixels(molmo2: Path) -> None:
    request = protocol.read(json.dumps(body(url_of(VIDEO))).encode())
    few = Prompts(str(molmo2), None, max_pixels=5 * 48 * 32 - 1, max_frames=5)
    with pytest.raises(protocol.Refused, match="The frames have 7680 pixels, more than 7679"):
        few.make(request, [VIDEO])


def test_ask_about_a_video(
    server: Server,
    parrot: Parrot,
    molmo2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "argv", ["molmo-ds ask"])
    (tmp_path / "a.mp4").write_bytes(VIDEO)
    track = 'Say <tracks coords="0.5 1 250 500;1.0 1 500 500">bird</tracks>.'
    words = [track, "--video", str(tmp_path / "a.mp4"), "--num-frames", "3"]
    run("ask", [*words, "--server", server.url, "--draw", str(tmp_path / "b.png")])
    assert "tracks" in capsys.readouterr().out
    assert len(parrot.asked[-1].prompt.images) == 3
    sheet = np.asarray(Image.open(tmp_path / "b.png")).astype(int)
    assert sheet.shape == (128, 384, 3)  # two frames of 48 x 32, four times as large
    # the greys of the frames at 0.5 and 1.0 s
    assert [round(sheet[-3, column, 0] / 10) for column in (186, 378)] == [5, 10]
    run("ask", [*words, "--checkpoint", str(molmo2), "--clip", "0", "1", "--max-new-tokens", "2"])
    for wrong in (["--image", "a.png"], ["--server", server.url, "--video", "none.mp4"]):
        with pytest.raises(SystemExit):
            run("ask", [*words, "--checkpoint", str(molmo2), *wrong])
