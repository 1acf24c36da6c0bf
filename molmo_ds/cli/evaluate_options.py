"""The options of an evaluation."""

import argparse
from pathlib import Path

from molmo_ds.cli.checked_options import Parser
from molmo_ds.data.sample.record import MOST_FRAMES
from molmo_ds.files import Remote, local, place

HIGH_RES = 36  # crops
OF_A_CHECKPOINT = ("batch", "precision", "tokenizer", "device")


def parser(text: str) -> argparse.ArgumentParser:
    """The command line; `text` describes the command."""
    top = Parser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument(
        "words",
        nargs="*",
        metavar="CHECKPOINT TASK[:SPLIT]",
        help="a checkpoint, then tasks or sets",
    )
    top.add_argument(
        "--list", action="store_true", help="print every task with its data and published figures"
    )
    top.add_argument(
        "--data",
        type=local,
        default=Path("data"),
        help="folder of the shards, as download writes them",
    )
    what = top.add_argument_group("what is asked")
    what.add_argument(
        "--limit", type=int, help="questions of each task; a run's log gets no figures then"
    )
    what.add_argument(
        "--shuffle-seed", type=int, help="draw those of --limit instead of taking the first"
    )
    what.add_argument("--max-crops", type=int, help="of a picture; default: as in training")
    what.add_argument(
        "--high-res", action="store_true", help="36 crops, unless --max-crops says otherwise"
    )
    what.add_argument(
        "--max-frames", type=int, help="of a video; default: as in training, or as its record says"
    )
    what.add_argument(
        "--loss", action="store_true", help="of the captions of pixmo_cap, instead of replies"
    )
    how = top.add_argument_group("who answers")
    how.add_argument(
        "--server", metavar="URL", help="an OpenAI-compatible server instead of a CHECKPOINT"
    )
    how.add_argument("--model", help="of the server; default: its first")
    how.add_argument(
        "--family",
        choices=["molmo", "molmo2", "hemolmo"],
        help="of the server's model; default: as the server says, or by the model's name",
    )
    how.add_argument(
        "--parallel", type=int, default=16, help="questions that a server is asked at once"
    )
    how.add_argument(
        "--batch",
        type=int,
        help="questions that a checkpoint answers at once; default: 64, of small models up to 256",
    )
    how.add_argument(
        "--strategy",
        type=local,
        help="a file of ds_configs/infer: replicas that lie on several ranks",
    )
    how.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        help="of a checkpoint; default: bf16 on a GPU, fp32 else",
    )
    how.add_argument(
        "--tokenizer", type=local, help="its folder, where the checkpoint does not know it"
    )
    how.add_argument("--device", help="default: a GPU if there is one")
    where = top.add_argument_group("what becomes of it")
    where.add_argument(
        "--save-dir", type=place, help="folder or URL of the results; default: the model's folder"
    )
    where.add_argument("--eval-name", default="", help="added to the names of the results' folders")
    where.add_argument("--overwrite", action="store_true", help="ask everything again")
    where.add_argument(
        "--rescore", action="store_true", help="score the saved replies, without a model"
    )
    where.add_argument(
        "--beside", type=local, help="results folder of another run, or one that holds such folders"
    )
    where.add_argument("--examples", type=int, default=300, help="on the page of each task")
    # the deepspeed launcher adds it
    top.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return top


def read(text: str, arguments: list[str] | None) -> argparse.Namespace:
    """The options; the first word is `checkpoint` unless a server answers, the others are `tasks`."""
    top = parser(text)
    given = top.parse_intermixed_args(arguments)
    given.checkpoint = None
    if given.list:
        return given
    if given.server is None and given.words:
        given.checkpoint = place(given.words[0])
        if isinstance(given.checkpoint, Remote) and given.save_dir is None:
            top.error(f"{given.checkpoint} needs --save-dir, a folder or a URL for the results.")
        given.words = given.words[1:]
    given.tasks = given.words
    if not given.tasks:
        top.error("name a CHECKPOINT (or --server URL) and a TASK or a set; --list prints them.")
    if given.server and given.save_dir is None:
        top.error("--server needs --save-dir, the folder of the results.")
    for name, least in (
        ("limit", 1),
        ("max_crops", 1),
        ("max_frames", 1),
        ("parallel", 1),
        ("batch", 1),
        ("examples", 0),
    ):
        value = getattr(given, name)
        if value is not None and value < least:
            top.error(f"--{name.replace('_', '-')} is {value}; it is at least {least}.")
    if given.max_crops is None and given.high_res:
        given.max_crops = HIGH_RES
    if given.max_crops is not None and given.max_crops > HIGH_RES:
        top.error(f"--max-crops is {given.max_crops}; Molmo knows up to {HIGH_RES}.")
    if given.max_frames is not None and given.max_frames > MOST_FRAMES:
        top.error(f"--max-frames is {given.max_frames}; a video shows {MOST_FRAMES} at most.")
    for name in ("batch", "device", "server", "loss", "rescore"):
        if given.strategy and getattr(given, name):
            top.error(
                f"--strategy lays a checkpoint over ranks that reply, in its own slots; leave --{name} out."
            )
    for name in ("family", "model") if given.checkpoint else OF_A_CHECKPOINT:
        if getattr(given, name) is not None:
            owner = "--server" if given.checkpoint else "a checkpoint"
            top.error(f"--{name} belongs to {owner}, which does not answer here; leave it out.")
    if given.rescore and given.overwrite:
        top.error("--rescore scores the saved replies and --overwrite asks again; give one.")
    if "/" in given.eval_name or given.eval_name.startswith("."):
        top.error(f"--eval-name is '{given.eval_name}'; it is part of a folder's name, without /.")
    if given.shuffle_seed is not None and given.limit is None:
        top.error("--shuffle-seed draws the questions of --limit; give both.")
    if given.loss and (given.server or given.rescore or given.beside):
        top.error("--loss needs a checkpoint; --server, --rescore and --beside are for replies.")
    return given
