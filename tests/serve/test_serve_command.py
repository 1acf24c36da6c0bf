"""`molmo-ds serve` as a user starts it: a rank that is killed comes back, and nothing is left at the end."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from molmo_ds.cli import run
from molmo_ds.engine.launching.ports import free_port
from molmo_ds.hub.export import to_hub
from molmo_ds.serve.vllm import VLLMSettings, command, environment, serve
from molmo_ds.testing.serving import chat, get, post

ROOT = Path(__file__).parents[2]
SECONDS = 120


def ranks(server: subprocess.Popen) -> list[psutil.Process]:
    """The processes of its engine."""
    children = psutil.Process(server.pid).children(recursive=True)
    return [child for child in children if "molmo_ds.serve.rank" in " ".join(child.cmdline())]


def until(done: str, said: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not re.search(done, said.read_text()):
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.1)


def test_a_killed_rank_comes_back_and_every_answer_is_whole(folder: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    said = tmp_path / "said"
    words = [
        sys.executable,
        str(ROOT / "tools/serve.py"),
        str(folder),
        "--port",
        str(port),
        "--model",
        "tiny",
    ]
    with open(said, "w") as stream:
        server = subprocess.Popen(words, stderr=stream, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        until("ready at", said)
        body = chat("Why?", max_tokens=400, temperature=1.0, seed=2)
        _, wanted = post(url, body)
        assert wanted["model"] == "tiny" and wanted["usage"]["completion_tokens"] > 20
        started = psutil.Process(server.pid).children(recursive=True)
        with ThreadPoolExecutor() as clients:
            answers = [clients.submit(post, url, body) for _ in range(4)]
            time.sleep(0.1)
            ranks(server)[0].kill()
            until("is started again", said)
            assert [answer.result()[1]["choices"] for answer in answers] == [wanted["choices"]] * 4
        assert get(f"{url}/health")[0] == 200
        assert b"molmo_ds_answers_resent_total 4.0" in get(f"{url}/metrics")[1]
        started += ranks(server)
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(30)
    assert code == 128 + signal.SIGTERM
    assert said.read_text().count("An engine is lost") == 1  # the one that was killed
    assert not any(
        process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in started
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "nowhere cannot be read"),
        ([".", "--backend", "vllm"], "belong together"),
        ([".", "--strategy", "a.json"], "belong together"),
        ([".", "--api-key-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
        (
            [".", "--backend", "vllm", "--vllm-python", "/nowhere/python"],
            "no Python that can be started",
        ),
        ([".", "--backend", "vllm", "--vllm-python", sys.executable], "has no package vllm"),
    ],
)
def test_mistakes_are_a_sentence(
    words: list[str], sentence: str, capfd: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("serve", [*words, "--port", str(free_port())])
    said = f"{ended.value.code} {capfd.readouterr().err}"
    assert re.search(sentence, said) and "Traceback" not in said


def test_the_environment_of_vllm() -> None:
    settings = VLLMSettings(python="venv/bin/python", folder="export", api_key="key")
    wait = "VLLM_ENGINE_READY_TIMEOUT_S"
    wanted = {"HOME": "/me", "VLLM_API_KEY": "key"}
    assert environment(settings, {"HOME": "/me", "PYTHONPATH": "."}) == wanted | {wait: "1800"}
    assert environment(settings, {"HOME": "/me", wait: "7"}) == wanted | {wait: "7"}


def test_the_command_line_of_vllm() -> None:
    settings = VLLMSettings(
        python="venv/bin/python", folder="export", queue=9, options=("--enforce-eager",)
    )
    words = " ".join(command(settings))
    assert words.startswith(
        "venv/bin/python -m vllm.entrypoints.openai.api_server --model export --trust-remote-code"
    )
    assert "--host 127.0.0.1 --port 8000 --max-num-seqs 9" in words and words.endswith(
        "--enforce-eager"
    )
    assert '--limit-mm-per-prompt {"image": 1}' in words


def test_vllm_is_not_given_what_it_would_answer_wrongly(folder: Path, tmp_path: Path) -> None:
    """vLLM's Molmo has two features of CLIP written down, whatever an export says."""
    to_hub(folder, tmp_path / "out")
    settings = VLLMSettings(python=str(stand_in(tmp_path)), folder=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"vLLM cannot serve .*out: .*; leave out --backend vllm"):
        serve(settings)


def stand_in(folder: Path, *lines: str) -> Path:
    """A Python of an environment that has vLLM."""
    python = folder / "python"
    python.write_text("\n".join(("#!/bin/sh", "[ $1 = -c ] && exit 0", *lines)))
    python.chmod(0o755)
    return python


def test_nothing_of_vllm_is_left(tmp_path: Path) -> None:
    """A stand-in that starts an engine, as vLLM does, and ends before it serves."""
    file = tmp_path / "engine"
    python = stand_in(tmp_path, "sleep 600 &", f"echo $! > {file}", "exit 3")
    (tmp_path / "config.json").write_text('{"architectures": []}')
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ValueError, match="ended with code 3 before it served"):
        serve(VLLMSettings(python=str(python), folder=str(tmp_path), address=address))
    engine = int(file.read_text())
    deadline = time.monotonic() + SECONDS
    while psutil.pid_exists(engine) and psutil.Process(engine).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)
