"""Serves a model over HTTP, as OpenAI's chat completions, with a page to try it at the server's root.

    FOLDER                                                       a run, a checkpoint, weights or a released folder
    FOLDER --strategy ds_configs/infer/tp8.json --hosts host1:8,host2:8
    FOLDER --backend vllm --vllm-python VENV/bin/python          an exported folder under vLLM

It listens on this machine only, unless --host says otherwise, and starts again whatever ends or falls silent.
"""

import os
import signal
import sys

from molmo_ds import files
from molmo_ds.cli.serve_options import read_arguments
from molmo_ds.engine.launching.hosts import read_hosts, refuse_unknown
from molmo_ds.engine.launching.ports import free_port
from molmo_ds.infer.load import look_up
from molmo_ds.serve.settings import FrontSettings, RankSettings
from molmo_ds.serve.vllm import VLLMSettings
from molmo_ds.serve.vllm import serve as serve_vllm
from molmo_ds.serve.watch import Patience, Watch, new_secret
from molmo_ds.weights.source import NO_FILE


def name_of(folder: str) -> str:
    """What clients call the model."""
    where = files.place(folder)
    return where.name if isinstance(where, files.Remote) else where.resolve().name


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, start, watch."""
    given = read_arguments(__doc__, arguments)
    key = os.environ.get(given.api_key_env) if given.api_key_env else None
    if given.api_key_env and not key:
        raise ValueError(
            f"--api-key-env names {given.api_key_env}, which is empty; set it to the key."
        )
    both = {
        "folder": str(given.folder),
        "model": given.model or name_of(given.folder),
        "address": f"{given.host}:{given.port}",
        "api_key": key,
        "queue": given.queue,
        "max_pictures": given.max_pictures,
        "hosts": tuple(filter(None, given.allowed_media_domains.split(","))),
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if given.backend == "vllm":
        serve_vllm(
            VLLMSettings(python=str(given.vllm_python), options=tuple(given.vllm_option), **both)
        )
        return
    hosts = read_hosts(given.hosts) if given.hosts else []
    refuse_unknown(hosts)
    tokenizer = given.tokenizer and str(given.tokenizer)
    # a wrong folder is a sentence before anything is started
    look_up(both["folder"], tokenizer, *NO_FILE)
    link = given.link or f"127.0.0.1:{free_port()}"
    front = FrontSettings(
        **both,
        tokenizer=tokenizer,
        link=link,
        secret=new_secret(),
        seconds=given.timeout,
        stall=given.stall,
        max_bytes=given.max_megabytes << 20,
        max_pixels=given.max_megapixels * 1_000_000,
        max_frames=given.max_frames,
    )
    rank = RankSettings(
        folder=both["folder"],
        tokenizer=tokenizer,
        link=link,
        strategy=given.strategy and str(given.strategy),
        device=given.device,
        slots=given.slots,
    )
    watch = Watch(front, rank, hosts, Patience(stall=given.stall))
    try:
        watch.run()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        watch.stop()
