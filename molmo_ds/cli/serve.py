"""Serves a model over HTTP, as OpenAI's chat completions, with a page to try it at the server's root.

FOLDER                                        a run's folder, a checkpoint, weights or a released folder
FOLDER --strategy ds_configs/infer/tp8.json --hosts host1:8,host2:8
FOLDER --backend vllm --vllm-python VENV/bin/python            an exported folder under vLLM
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from molmo_ds.config import home
from molmo_ds.engine.hosts import read_hosts, refuse_unknown
from molmo_ds.engine.supervise import free_port
from molmo_ds.serve.front import FrontSettings
from molmo_ds.serve.rank import RankSettings
from molmo_ds.serve.vllm import VLLMSettings
from molmo_ds.serve.vllm import serve as serve_vllm
from molmo_ds.serve.watch import Patience, Watch, new_secret


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, start, watch."""
    given = read_arguments(arguments)
    key = os.environ.get(given.api_key_env) if given.api_key_env else None
    if given.api_key_env and not key:
        raise ValueError(f"--api-key-env names {given.api_key_env}, which is empty; set it to the key.")
    both = {
        "folder": str(given.folder),
        "model": given.model or Path(given.folder).resolve().name,
        "address": f"{given.host}:{given.port}",
        "api_key": key,
        "queue": given.queue,
        "max_pictures": given.max_pictures,
        "hosts": tuple(filter(None, given.allowed_media_domains.split(","))),
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if given.backend == "vllm":
        serve_vllm(VLLMSettings(python=str(given.vllm_python), options=tuple(given.vllm_option), **both))
        return
    hosts = read_hosts(given.hosts) if given.hosts else []
    refuse_unknown(hosts)
    tokenizer = given.tokenizer and str(given.tokenizer)
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
    )
    rank = RankSettings(
        folder=both["folder"],
        tokenizer=tokenizer,
        link=link,
        strategy=given.strategy and str(given.strategy),
        device=given.device,
        slots=given.slots,
        stall=int(given.stall),
    )
    watch = Watch(front, rank, hosts, Patience(stall=given.stall))
    try:
        watch.run()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        watch.stop()


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=home)
    add("--tokenizer", type=home, help="its folder, where FOLDER does not know it")
    add("--strategy", type=home, help="a file of ds_configs/infer; without one, one process")
    add("--hosts", help="host1:8,host2:8, or a hostfile, or localhost:8: where the ranks of --strategy are started")
    add("--device", help="of one process; default: a GPU if there is one")
    add("--slots", type=int, default=64, help="answers at a time of one process (a strategy file has its own)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every network")
    add("--port", type=int, default=8000)
    add("--link", help="HOST:PORT where ranks of other hosts dial in; default: a free port of this machine only")
    add("--model", help="the model's name in answers; default: the folder's")
    add("--api-key-env", metavar="NAME", help="variable that holds the key which every request must bring")
    add("--queue", type=int, default=64, help="requests at a time; one more gets 429")
    add("--timeout", type=float, default=600.0, help="seconds in which a request must be answered")
    add("--stall", type=float, default=30.0, help="seconds of silence after which the engine is started again")
    add("--max-megabytes", type=int, default=32, help="of a request")
    add("--max-megapixels", type=int, default=64, help="of all pictures of a request")
    add("--max-pictures", type=int, default=8, help="of a request")
    add("--allowed-media-domains", default="", help="a.org,b.org: hosts from which pictures may be fetched")
    add("--backend", choices=["own", "vllm"], default="own")
    add("--vllm-python", type=home, help="Python of the environment that vLLM is installed in")
    add("--vllm-option", action="append", default=[], help="one more word for vLLM; may be given several times")
    given = parser.parse_args(arguments)
    if (given.backend == "vllm") != (given.vllm_python is not None):
        parser.error("--backend vllm and --vllm-python PATH belong together; give both or none.")
    if bool(given.strategy) != bool(given.hosts):
        parser.error("--strategy and --hosts belong together; give both, for example --hosts localhost:8, or none.")
    return given
