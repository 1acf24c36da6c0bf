"""HeMolmo behind the front: answers are those of two passes without a cache, and what it cannot see is a sentence."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from molmo_ds import settings
from molmo_ds.cli import ask
from molmo_ds.data.order.selected import collate_selected
from molmo_ds.infer import selected
from molmo_ds.infer.load import Answerer, load
from molmo_ds.testing import run_files
from molmo_ds.testing.random_weights import initial_folder
from molmo_ds.testing.serving import Server, chat, data_url, events, post

NEW = 7
SIZES = [(40, 30), (90, 30), (30, 80), None]


@pytest.fixture(scope="module")
def hemolmo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("hemolmo")
    wide = [f"model.{part}.initializer_range=0.1" for part in ("text", "vision", "connector")]
    wide += ["model.images.overlap_margins=[1,1]", "model.selection.picks=5"]
    words = ["preset=tiny_hemolmo", *run_files.make(folder / "run"), *wide]
    model = settings.load(None, [*words, f"out={folder / 'none'}"]).model
    initial_folder(folder / "model", model, folder / "run/tokenizer")
    return folder / "model"


@pytest.fixture(scope="module")
def answerer(hemolmo: Path) -> Answerer:
    return load(hemolmo, device="cpu")


@pytest.fixture(scope="module")
def front(hemolmo: Path, answerer: Answerer) -> Iterator[Server]:
    front = Server(hemolmo, queue=8, seconds=60.0)
    with front.front_in_a_thread(), front.engine_in_a_thread(answerer.replica(4)):
        yield front


def expected(answerer: Answerer, question: str, size: tuple[int, int] | None) -> tuple[str, float]:
    """(the text without a cache, the log-probability of its tokens and their end)."""
    shown = [] if size is None else [np.full((size[1], size[0], 3), 90, np.uint8)]
    prompt = answerer.builder.prompt(shown, question)
    tokenizer = answerer.builder.tokenizer
    batch = collate_selected([prompt])
    made, scores = selected.answer(answerer.model, batch, tokenizer.eos, NEW)
    ids = made[0].tolist()
    ids = ids[: ids.index(tokenizer.eos)] if tokenizer.eos in ids else ids
    return tokenizer.decode(ids).strip(), float(scores[0])


def test_answers_over_http(front: Server, answerer: Answerer) -> None:
    """Several at once, with and without a picture, whole and streamed."""
    asked = [
        (f"How many birds{' and birds' * (number % 3)}?", SIZES[number % len(SIZES)])
        for number in range(8)
    ]
    bodies = [
        chat(
            question,
            *([data_url(*size)] if size else []),
            max_tokens=NEW,
            temperature=0,
            logprobs=True,
        )
        for question, size in asked
    ]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: post(front.url, body), bodies))
    known = [expected(answerer, *one) for one in asked]
    assert len({round(score, 3) for _, score in known}) == 8, "answers are alike"
    for (status, answer), (text, score) in zip(answers, known, strict=True):
        assert status == 200
        choice = answer["choices"][0]
        assert choice["message"]["content"].strip() == text
        found = sum(token["logprob"] for token in choice["logprobs"]["content"])
        assert found == pytest.approx(score, abs=2e-4)
    pieces = [
        event["choices"][0]["delta"].get("content", "") for event in events(front.url, bodies[1])
    ]
    assert "".join(pieces).strip() == known[1][0]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (chat("Which?", data_url(), data_url()), "HeMolmo sees one picture; leave"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "image_url",
                                "image_url": {"url": data_url(), "detail": "low"},
                            },
                            {"type": "text", "text": "Which?"},
                        ],
                    }
                ]
            },
            "HeMolmo sees a picture in a low and a high resolution",
        ),
    ],
    ids=["two", "low"],
)
def test_what_it_cannot_see_is_a_sentence(front: Server, body: dict, sentence: str) -> None:
    status, answer = post(front.url, body)
    assert status == 400 and answer["error"]["message"].startswith(sentence)


def test_the_command_asks_it(
    hemolmo: Path, answerer: Answerer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.fromarray(np.full((30, 90, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    words = ["--checkpoint", str(hemolmo), "--image", str(tmp_path / "grey.png"), "How many birds?"]
    ask.main([*words, "--max-new-tokens", str(NEW), "--device", "cpu"])
    assert capsys.readouterr().out.strip() == expected(answerer, "How many birds?", (90, 30))[0]
