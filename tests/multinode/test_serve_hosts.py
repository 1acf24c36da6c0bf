"""`molmo-ds serve` with a replica of two stages on two hosts, two ranks a stage, through what happens to hosts."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from molmo_ds.infer.load import load
from molmo_ds.infer.replica import Replica
from molmo_ds.testing import lab
from molmo_ds.testing.serving import Server, chat, get, post, weights_folder

ROOT = Path(__file__).parents[2]
URL = "http://127.0.0.1:8000"
STALL = 6  # seconds
STRATEGY = {
    "tensor_parallel": {"autotp_size": 2},
    "molmo_ds": {"engine": "inference", "stages": 2, "slots": 8, "slot_tokens": 512},
}
QUESTIONS = [chat(f"Why {'so ' * i}?", max_tokens=400, temperature=1.0, seed=i) for i in range(6)]

pytestmark = pytest.mark.skipif(bool(lab.missing()), reason=lab.missing() or "it can run")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_folder(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def wanted(folder: Path) -> list[Any]:
    """The choices of one process."""
    answerer = load(folder, device="cpu")
    server = Server(folder)
    replica = Replica.of(answerer.model, answerer.builder.tokenizer.eos)
    with server.front_in_a_thread(), server.engine_in_a_thread(replica):
        return [post(server.url, body)[1]["choices"] for body in QUESTIONS]


@pytest.fixture
def said(laboratory: lab.Lab, folder: Path, tmp_path: Path) -> Iterator[Path]:
    """What a server on the laboratory's head says until the end of a test."""
    strategy = tmp_path / "tp2_pp2.json"
    strategy.write_text(json.dumps(STRATEGY))
    words = [
        sys.executable,
        ROOT / "tools/serve.py",
        folder,
        "--strategy",
        strategy,
        "--hosts",
        "host1:2,host2:2",
    ]
    words += ["--link", f"{laboratory.address('head')}:8001", "--stall", str(STALL)]
    environment = laboratory.environment() | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    file = tmp_path / "said"
    with open(file, "wb") as stream:
        server = subprocess.Popen(
            laboratory.words("head", words), cwd=ROOT, env=environment, stdout=stream, stderr=stream
        )
    yield file
    if server.poll() is None:
        # `server` is nsenter, before it
        laboratory.kill("head", ("tools/serve.py",), signal.SIGTERM)
        server.wait(60)


@pytest.fixture
def clients(laboratory: lab.Lab) -> Iterator[ThreadPoolExecutor]:
    """Threads in the network of the head."""
    with ThreadPoolExecutor(
        len(QUESTIONS) + 1, initializer=laboratory.enter, initargs=("head",)
    ) as pool:
        yield pool


def ask(body: dict[str, Any]) -> Any:
    """The choices of an answer; a closed connection is tried again, as clients do."""
    for _ in range(200):
        try:
            status, answer = post(URL, body)
        except OSError:
            time.sleep(0.2)
            continue
        assert status == 200, answer
        return answer["choices"]
    raise AssertionError("the front does not come back")


def health() -> int:
    try:
        return get(f"{URL}/health")[0]
    except OSError:
        return 0


def seconds(what: Callable[[], bool], said: Path) -> float:
    """How long it took until it is so."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < 120, said.read_text()[-3000:]
        time.sleep(0.1)
    return time.monotonic() - began


def test_no_answer_is_lost_and_no_token_changes(
    laboratory: lab.Lab, said: Path, clients: ThreadPoolExecutor, wanted: list[Any]
) -> None:
    def is_healthy() -> bool:
        return clients.submit(health).result() == 200

    took = {"start": seconds(lambda: "ready at" in said.read_text(), said)}
    answers = clients.map(ask, QUESTIONS)
    laboratory.kill("head", ("molmo_ds.serve.front",), signal.SIGKILL)
    assert list(answers) == wanted
    took["front"] = seconds(is_healthy, said)
    answers = clients.map(ask, QUESTIONS)
    laboratory.cut("host2")
    took["503"] = seconds(lambda: not is_healthy(), said)
    took["noticed"] = seconds(lambda: "the engine is started again" in said.read_text(), said)
    laboratory.mend("host2")
    began = time.monotonic()
    assert list(answers) == wanted
    took["answers"] = time.monotonic() - began
    print(took, said.read_text())
    assert took["503"] < 3 * STALL
    assert "6 unfinished answers go on" in said.read_text()  # all were on their way
    assert "the front ended with code -9" in said.read_text()
