"""The options of `molmo-ds serve`."""

import argparse

from molmo_ds.config import home


def read_arguments(description: str, arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
