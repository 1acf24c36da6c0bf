"""The process of one rank of the engine: it reads its part of the weights and works behind the front.

    python -m molmo_ds.serve.rank SETTINGS      alone, or under any launcher; serve/watch.py does it

The secret of the link is in MOLMO_DS_LINK_SECRET.
"""

import logging
import os
import sys

from molmo_ds.data.tokens import Tokenizer
from molmo_ds.engine import launch
from molmo_ds.engine.strategy import read_strategy
from molmo_ds.infer.load import default_precision, load, look_up, read_replica
from molmo_ds.infer.replica import Replica
from molmo_ds.serve.address import read_address
from molmo_ds.serve.link import Dialled
from molmo_ds.serve.settings import SECRET, RankSettings, from_word
from molmo_ds.serve.worker import Ranks, Worker


def main() -> None:
    """Work; a user's mistake, or a front that is gone, is a sentence and exit code 1."""
    logging.basicConfig(format="engine: %(message)s", level=logging.WARNING)
    settings = from_word(sys.argv[-1])  # launchers put their own words before it
    try:
        work(settings, os.environ.get(SECRET, ""))
    except (ValueError, OSError) as error:
        sys.exit(f"engine: {error}")


def work(settings: RankSettings, secret: str) -> None:
    """Build this rank's part of a Replica and answer."""
    alone = settings.strategy is None
    replica = build_alone(settings) if alone else build_part(settings)
    grid = replica.share.grid
    ranks = Ranks(() if alone else grid.along("stage", "tensor"))
    front = None
    if ranks.is_first:
        place = read_address(settings.link)
        front = Dialled(place, secret, settings.patience, replica.index, replica.count)
    Worker(replica, ranks, front).run()


def build_alone(settings: RankSettings) -> Replica:
    """A replica that is this process."""
    return load(settings.folder, settings.tokenizer, settings.device).replica(settings.slots)


def build_part(settings: RankSettings) -> Replica:
    """This rank's part of a replica that lies on several; all ranks make the same calls."""
    strategy = read_strategy(settings.strategy)
    world = launch.start()
    source, config = world.together(
        lambda: look_up(settings.folder, settings.tokenizer, world.rank, world.size)
    )
    tokenizer = Tokenizer(config.data.tokenizer, config.model.text.vocab_size, config.model.family)
    precision = default_precision(world.device)
    return read_replica(source, config.model, strategy, world, precision, tokenizer.eos)


if __name__ == "__main__":
    main()
