"""Converts weights: released Molmo folders, the reference's checkpoints and transformers' backbones from and to ours.

    from-hub SRC OUT [KEY=VALUE ...]         released folder or hub id -> weights folder
    from-reference SRC OUT [KEY=VALUE ...]   config.yaml + model.pt -> weights folder
    backbones --llm qwen2-7b=SRC --vision openai=SRC OUT [KEY=VALUE ...]
    consolidate CHECKPOINT OUT               a run's checkpoint -> weights folder
    to-hub CHECKPOINT OUT [--dtype bf16] [--tokenizer FOLDER]
    to-peft CHECKPOINT OUT                   a run's LoRA adapters -> peft's format
    from-peft ADAPTERS OUT --base WEIGHTS    merged into their base -> weights folder

KEY=VALUE changes the architecture, for example vision.num_hidden_layers=3 (docs/guides/convert.md).
"""

import argparse
import sys

from molmo_ds.cli.checked_options import Parser
from molmo_ds.config import home
from molmo_ds.hub import adapters, export, load


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    for name in ("from-hub", "from-reference", "consolidate", "to-hub"):
        command = commands.add_parser(name)
        command.add_argument("source", type=home, help="folder, or hub id for from-hub")
        command.add_argument("out", type=home, help="new folder")
        if name.startswith("from"):
            command.add_argument(
                "changes", nargs="*", metavar="KEY=VALUE", help="changes of the architecture"
            )
    command.add_argument(
        "--dtype", choices=tuple(export.DTYPES), help="default: as in the checkpoint"
    )
    command.add_argument(
        "--tokenizer", type=home, help="transformers tokenizer folder; default: the checkpoint's"
    )
    command.add_argument(
        "--code",
        type=home,
        help="released Molmo2 (folder or hub id) whose model code goes along, for transformers 4.57",
    )
    command.add_argument("--shard-gb", type=float, default=5.0, help="largest shard in GB")
    for name in ("to-peft", "from-peft"):
        command = commands.add_parser(name)
        command.add_argument("source", type=home, help="checkpoint, or peft's folder")
        command.add_argument("out", type=home, help="new folder")
    command.add_argument(
        "--base", type=home, required=True, help="weights folder or run below the adapters"
    )
    command = commands.add_parser("backbones")
    command.add_argument(
        "--llm",
        required=True,
        metavar="NAME=SRC",
        help="a preset (molmo_7b_d, olmo2_13b, qwen2.5_3b, llama3.1_8b, ...) or a family = folder",
    )
    command.add_argument(
        "--vision",
        required=True,
        metavar="NAME=SRC",
        help="openai, metaclip, siglip, dinov2 = folder",
    )
    command.add_argument(
        "--seed", type=int, default=6198, help="of the connector and the new embedding rows"
    )
    command.add_argument("out", type=home, help="new folder")
    command.add_argument(
        "changes", nargs="*", metavar="KEY=VALUE", help="changes of the architecture"
    )
    return top


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Options and KEY=VALUE in any order."""
    top = parser()
    args, more = top.parse_known_args(argv)
    wrong = [word for word in more if "=" not in word or "changes" not in args]
    if wrong:
        top.error(f"unrecognized arguments: {' '.join(wrong)}")
    if more:
        args.changes += more
    return args


def main(argv: list[str] | None = None) -> int:
    """Run one command; 1 and a sentence on the standard error where it fails."""
    args = read_arguments(argv)
    try:
        if args.command == "from-hub":
            load.from_hub(args.source, args.out, tuple(args.changes))
        elif args.command == "from-reference":
            load.from_reference(args.source, args.out, tuple(args.changes))
        elif args.command == "consolidate":
            load.consolidate(args.source, args.out)
        elif args.command == "to-peft":
            adapters.to_peft(args.source, args.out)
        elif args.command == "from-peft":
            adapters.from_peft(args.source, args.base, args.out)
        elif args.command == "to-hub":
            shard = int(args.shard_gb * 1e9)
            print(
                export.to_hub(args.source, args.out, args.dtype, args.tokenizer, shard, args.code)
            )
        else:
            load.backbones(
                pair(args.llm), pair(args.vision), args.out, tuple(args.changes), args.seed
            )
    except (ValueError, OSError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    print(f"Wrote {args.out}.")
    return 0


def pair(text: str) -> tuple[str, str]:
    """NAME=SRC."""
    name, equals, source = text.partition("=")
    if not (name and equals and source):
        raise ValueError(f"'{text}' is not NAME=SRC, for example qwen2-7b=Qwen/Qwen2-7B.")
    return name, home(source)
