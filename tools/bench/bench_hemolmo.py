"""Times HeMolmo's training step and that of the same network without selection, at equal pictures and words.

    python tools/bench/bench_hemolmo.py [--crops 8] [--picks 128] [--steps 3]

Both train on one picture of a low-resolution view and so many crops, a question and an answer; one shows the decoder
all windows, the other the low resolution and its picks. Steps (forward, backward, AdamW) are taken in turn, in CPU
seconds of one thread. The network has random weights: what is measured is the work, not the answers.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch
from tqdm import tqdm

from molmo_ds.architecture import MolmoConfig, SelectionConfig
from molmo_ds.batch import Batch, Sample, windows_of
from molmo_ds.config import OptimConfig
from molmo_ds.data.order.packing import collate
from molmo_ds.data.order.selected import collate_selected
from molmo_ds.data.sample.pictures.image_ids import image_ids
from molmo_ds.data.sample.selected import selected
from molmo_ds.engine.optim import build_optimizer, parameter_groups
from molmo_ds.model.init import reset_parameters
from molmo_ds.model.molmo import Molmo
from molmo_ds.presets.tiny import tiny

IM_START, IM_END, IM_PATCH, IM_COL, IM_LOW = 0, 1, 2, 3, 5  # counted from vocab_size
QUESTION = 12  # tokens
ANSWER = 32


def network(selects: bool) -> MolmoConfig:
    """A decoder of 3.7 M parameters behind a small tower over crops as large as released: 336 pixels, 144 windows."""
    base = tiny()
    text = replace(
        base.text,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        image_attention="within_image",
        max_position_embeddings=4096,
    )
    vision = replace(
        base.vision,
        image_size=336,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=1,
    )
    connector = replace(base.connector, padding_embed="none")
    made = replace(base, text=text, vision=vision, connector=connector)
    return replace(made, family="hemolmo", selection=SelectionConfig()) if selects else made


def batch_of(config: MolmoConfig, crops: int, picks: int | None) -> Batch:
    """One row about a picture; `picks` of its high windows are shown, None = all of them."""
    words = config.text.vocab_size
    random = torch.Generator().manual_seed(0)
    grid = config.vision.image_size // config.vision.patch_size
    side = grid // config.connector.pooling_size
    low = side * side
    high = crops * low
    token = IM_PATCH if picks is None else IM_LOW
    visual = "molmo2" if picks is None else "hemolmo"  # whose tokens see each other
    view = [IM_START, *([token] * side + [IM_COL]) * side, IM_END]
    shown = [IM_PATCH] * (high if picks is None else picks)
    tiles = [IM_START, *shown, *[IM_COL] * side * crops, IM_END]
    said = torch.randint(3, words, (1 + QUESTION + ANSWER,), generator=random)
    picture = torch.tensor(view + tiles) + words
    ids = torch.cat([said[: 1 + QUESTION], picture, said[1 + QUESTION :]])
    places = torch.arange(len(ids))
    weights = torch.zeros(len(ids))
    weights[-ANSWER - 1 : -1] = 1.0
    patches = (ids == words + IM_PATCH).nonzero()[:, 0]
    if picks is not None:
        places[patches] = patches[0]  # moved to where a picked window lies
    size = config.vision.image_size
    sample = Sample(
        input_ids=ids,
        labels=ids.roll(-1).clamp(max=words - 1),
        loss_weights=weights,
        position_ids=places,
        branch_ids=torch.zeros(len(ids), dtype=torch.int32),
        image_ids=image_ids(ids, words, config.text.image_attention, visual),
        images=torch.randint(
            0, 256, (1 + crops, size, size, 3), generator=random, dtype=torch.uint8
        ),
        image_masks=torch.ones(1 + crops, grid * grid),
        windows=windows_of(1 + crops, grid, config.connector.pooling_size),
        image_positions=patches,
    )
    if picks is None:
        return collate([[sample]], len(ids))
    share = torch.rand(4 * low, high, generator=random)
    return collate_selected([selected(sample, words, torch.arange(high), share / share.sum(0))])


class Side:
    """A network that trains."""

    def __init__(self, config: MolmoConfig, batch: Batch):
        torch.manual_seed(0)
        self.batch = batch.weighted(1 / float(batch.loss_weights.sum()))
        self.model = Molmo(config)
        reset_parameters(self.model, config, seed=0)
        self.optimizer = build_optimizer(parameter_groups(self.model, OptimConfig()), OptimConfig())
        self.seconds: list[float] = []

    def step(self) -> None:
        """One update, timed."""
        begin = time.process_time()
        losses = self.model(self.batch)
        (losses[0] + losses[1]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.process_time() - begin)


def main(arguments: list[str] | None = None) -> None:
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--crops", type=int, default=8, help="of the high resolution")
    parser.add_argument("--picks", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sides = {}
    for name, picks in (("all windows", None), (f"{given.picks} picked", given.picks)):
        config = network(picks is not None)
        sides[name] = Side(config, batch_of(config, given.crops, picks))
    for _ in tqdm(range(1 + given.steps), desc="steps"):
        for side in sides.values():
            side.step()
    print(
        "| decoder sees | tokens of a row | CPU s of a step | of all windows |\n|---|---|---|---|"
    )
    whole = None
    for name, side in sides.items():
        seconds = statistics.median(side.seconds[1:])
        whole = whole or seconds
        tokens = side.batch.input_ids.numel()
        print(f"| {name} | {tokens} | {seconds:.2f} | {seconds / whole:.2f} |")


if __name__ == "__main__":
    main()
