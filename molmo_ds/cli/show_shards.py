"""A page with the pictures, crops, tokens, loss weights, branches and packing of real batches of one data set.

    SHARDS OUT.html --config runs/one/config.yaml
    SHARDS OUT.html --tokenizer FOLDER preset=molmo_7b_d data.sequence_length=2304

Without a tokenizer a small one is trained on the data set's own text, so token counts are then not those of a model.
"""

import argparse
import dataclasses
import itertools
import tempfile
from pathlib import Path

from tqdm import tqdm

from molmo_ds import settings
from molmo_ds.cli.checked_options import Parser, page_file
from molmo_ds.config import RunConfig, SourceConfig, home
from molmo_ds.data.order import losses
from molmo_ds.data.order.loader import Mixture, rank_lanes, sequences
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.show.documents import Page
from molmo_ds.data.show.page import counts_of, render
from molmo_ds.data.tokens import train_tokenizer


def main(arguments: list[str] | None = None) -> None:
    """Write the page and say what it shows."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=home, help="folder, URL or glob of indexed shards")
    parser.add_argument("out", type=page_file, help="HTML file to write")
    parser.add_argument("overrides", nargs="*", help="settings of the run, key=value")
    parser.add_argument("--config", type=home, help="config.yaml of a run")
    parser.add_argument("--tokenizer", type=home, help="folder of a tokenizer")
    parser.add_argument("--sequences", type=int, default=16, help="packed sequences to draw")
    parser.add_argument(
        "--documents", type=int, default=8, help="of them, documents to show in full"
    )
    args, more = parser.parse_known_intermixed_args(arguments)
    wrong = [word for word in args.overrides + more if "=" not in word]
    if wrong:
        parser.error(f"'{wrong[0]}' is neither an option nor key=value")
    if args.sequences < 1 or args.documents < 0:
        parser.error("--sequences must be at least 1 and --documents at least 0")
    base = [] if args.config else ["preset=molmo_7b_d"]
    config = settings.load(args.config, base + args.overrides + more)
    with tempfile.TemporaryDirectory() as folder:
        # a run whose questions stand before the picture takes each annotation by itself
        source = SourceConfig(path=args.dataset, split_annotations=config.data.prompts.image_last)
        data = dataclasses.replace(
            config.data,
            sources={Path(args.dataset.rstrip("/")).name: source},
            tokenizer=args.tokenizer
            or config.data.tokenizer
            or train(args.dataset, folder, config),
            group_rates={},
            num_workers=0,
        )
        lanes = min(8, len(ShardSet(args.dataset)))
        config = dataclasses.replace(config, data=data, global_batch=lanes, micro_batch=1)
        mixture = Mixture.open(config)
        mixture.check(0, 1)
        stream = sequences(config, mixture, rank_lanes(config, 0, 1), {})
        drawn = list(
            tqdm(itertools.islice(stream, args.sequences), total=args.sequences, desc="sequences")
        )
        page = Page(mixture, drawn, args.documents)
        args.out.write_text(render(page, config, args.dataset))
    skipped = [what for sequence in drawn for what in sequence.skipped]
    said = f"; {len(skipped)} samples skipped, the first {skipped[0]}" if skipped else ""
    length = config.data.sequence_length
    said += "".join(f"; {sentence}" for sentence in losses.sentences(counts_of(drawn), length))
    print(
        f"{args.out} ({args.out.stat().st_size / 1e6:.1f} MB) shows {len(drawn)} sequences of {args.dataset}{said}"
    )


def train(dataset: str, folder: str, config: RunConfig) -> str:
    """A tokenizer of the data set's own first texts."""
    shards = ShardSet(dataset)
    texts = (str(shards.record(i)["annotations"]) for i in range(min(300, len(shards))))
    train_tokenizer(texts, min(1000, config.model.text.vocab_size), folder)
    return folder
