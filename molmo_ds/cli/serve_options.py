"""The options of `molmo-ds serve`."""

import argparse

from molmo_ds.cli.checked_options import Parser
from molmo_ds.config import home


def read_arguments(description: str, arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=home)
    parser.add_argument("--tokenizer", type=home, help="its folder, where FOLDER does not know it")
    parser.add_argument(
        "--strategy", type=home, help="a file of ds_configs/infer; without one, one process"
    )
    parser.add_argument(
        "--hosts",
        help="host1:8,host2:8, or a hostfile, or localhost:8: where the ranks of --strategy are started",
    )
    parser.add_argument("--device", help="of one process; default: a GPU if there is one")
    parser.add_argument(
        "--slots",
        type=int,
        default=64,
        help="answers at a time of one process (a strategy file has its own)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every network"
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--link",
        help="HOST:PORT where ranks of other hosts dial in; default: a free port of this machine only",
    )
    parser.add_argument("--model", help="the model's name in answers; default: the folder's")
    parser.add_argument(
        "--api-key-env",
        metavar="NAME",
        help="variable that holds the key which every request must bring",
    )
    parser.add_argument(
        "--queue", type=int, default=64, help="requests at a time; one more gets 429"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, help="seconds in which a request must be answered"
    )
    parser.add_argument(
        "--stall",
        type=float,
        default=30.0,
        help="seconds of silence after which the engine is started again",
    )
    parser.add_argument("--max-megabytes", type=int, default=32, help="of a request")
    parser.add_argument(
        "--max-megapixels", type=int, default=64, help="of all pictures or frames of a request"
    )
    parser.add_argument("--max-pictures", type=int, default=8, help="of a request")
    parser.add_argument("--max-frames", type=int, default=384, help="of a video")
    parser.add_argument(
        "--allowed-media-domains",
        default="",
        help="a.org,b.org: hosts from which pictures and videos may be fetched",
    )
    parser.add_argument("--backend", choices=["own", "vllm"], default="own")
    parser.add_argument(
        "--vllm-python", type=home, help="Python of the environment that vLLM is installed in"
    )
    parser.add_argument(
        "--vllm-option",
        action="append",
        default=[],
        help="one more word for vLLM; may be given several times",
    )
    given = parser.parse_args(arguments)
    if (given.backend == "vllm") != (given.vllm_python is not None):
        parser.error("--backend vllm and --vllm-python PATH belong together; give both or none.")
    if bool(given.strategy) != bool(given.hosts):
        parser.error(
            "--strategy and --hosts belong together; give both, for example --hosts localhost:8, or none."
        )
    return given
