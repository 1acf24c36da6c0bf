"""Bytes per GPU that a run will need, before anything is launched; from shapes alone (the meta device).

PRESET STRATEGY HOSTFILE [key=value ...], for example
    molmo_7b_d ds_configs/zero3.json hostfile activation_checkpointing=full micro_batch=1

`auto` for STRATEGY lists those of ds_configs that can run, the cheapest first, and takes the first that fits.
HOSTFILE is DeepSpeed's (`name slots=8` per line), HOSTSxGPUS as 2x8, or a number of GPUs. A STRATEGY to answer with
(ds_configs/infer/tp8.json) gives what is left for the cache, the slots, and times counted from bytes and FLOPs;
card.bandwidth=2e12 says of the GPU what is not that of an H100. What is saved for the backward pass is found by
running one layer of each kind on fake tensors; what DeepSpeed holds follows its sources (0.19) and was compared with
torch's own count of allocations (tests/test_plan_memory.py). CUDA's context, NCCL's buffers (1-2 GB) and
fragmentation come on top.
"""

import dataclasses
import re
import sys
from pathlib import Path

from molmo_ds import settings
from molmo_ds.config import RunConfig
from molmo_ds.engine.answering.layout import refuse as refuse_layout
from molmo_ds.engine.launching.hosts import read_hosts
from molmo_ds.engine.plan import choice, host_time, plan_inference
from molmo_ds.engine.plan.choice import Room
from molmo_ds.engine.plan.plan_inference import Card
from molmo_ds.engine.plan.plan_memory import plan
from molmo_ds.engine.strategy import AUTO, read_strategy
from molmo_ds.engine.strategy.refusals import refuse

FIELDS = (
    "weights",
    "gathered",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "pixels",
    "peak",
)
FIELDS += ("host",)


def count_gpus(text: str) -> int:
    """The number of GPUs of a hostfile or of a list host1:8,host2:8, or the number itself."""
    if not Path(text).expanduser().is_file():
        if re.fullmatch(r"[0-9]+x[0-9]+", text):
            hosts, each = text.split("x")
            text = str(int(hosts) * int(each))
        if re.fullmatch(r"-?[0-9]+", text):
            if int(text) < 1:
                raise ValueError(f"{text} is no number of GPUs; give 1 or more, or a hostfile.")
            return int(text)
        if ":" not in text:
            raise ValueError(
                f"There is no hostfile {text}; give a file with lines `name slots=8`, or a number of GPUs."
            )
    return sum(host.slots for host in read_hosts(text))


def read_arguments(arguments: list[str]) -> tuple[list[str], RunConfig, int]:
    """PRESET, STRATEGY and HOSTFILE, the configuration, and the number of GPUs; key=value may stand anywhere."""
    overrides = [word.removeprefix("--") for word in arguments if "=" in word]
    words = [word for word in arguments if "=" not in word]
    if len(words) != 3 or any(word.startswith("-") for word in words[:2]):
        sys.exit(__doc__)
    given = dict(word.split("=", 1) for word in overrides)
    for name in given.keys() & {"preset", "strategy"}:
        raise ValueError(f"{name}={given[name]} says twice what {name.upper()} says; leave it out.")
    world = count_gpus(words[2])
    micro = given.get("micro_batch", "1")
    if "global_batch" not in given and micro.isdigit():
        overrides.append(f"global_batch={world * max(1, int(micro))}")
    return (
        words,
        settings.load(None, [f"preset={words[0]}", f"strategy={words[1]}", *overrides]),
        world,
    )


def read_card(words: list[str]) -> Card:
    """The GPU of `card.NAME=NUMBER` words."""
    known = {field.name: type(field.default) for field in dataclasses.fields(Card)}
    given = {}
    for word in words:
        name, _, value = word.removeprefix("card.").partition("=")
        if name not in known:
            raise ValueError(f"card.{name} is no number of a GPU; these are: {', '.join(known)}.")
        try:
            given[name] = known[name](value)
        except ValueError:
            raise ValueError(f"{word}: '{value}' is no number.") from None
        if not 0 < given[name] < float("inf"):
            raise ValueError(f"{word}: the number must be above 0.")
    return Card(**given)


def choose(config: RunConfig, world: int, card: Card) -> str:
    """Print what strategy=auto would see on such GPUs; the path that it would take."""
    room = Room(device=card.memory, host=card.host / card.per_host)
    for one in choice.candidates(config, world, room):
        host = f", {one.host / 1e9:.2f} GB of the host's" if one.host else ""
        verdict = "fits" if one.fits else "does not fit"
        print(f"{one.name:>14} {one.device / 1e9:10.2f} GB{host}: {verdict}")
    made = choice.choose(config, world, room)
    print(made.sentence)
    return made.path


def main(arguments: list[str] | None = None) -> None:
    """Print the table; one line per pipeline stage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return
    cards = [
        word.removeprefix("--") for word in arguments if word.removeprefix("--").startswith("card.")
    ]
    arguments = [word for word in arguments if word.removeprefix("--") not in cards]
    (preset, path, _), config, world = read_arguments(arguments)
    card = read_card(cards)
    if path == AUTO:
        path = choose(config, world, card)
    strategy = read_strategy(path)
    if strategy.engine == "inference":
        refuse_layout(config.model, strategy)
        print(f"{preset}, {strategy.name}, {world} GPUs")
        print(
            "\n".join(
                plan_inference.report(
                    plan_inference.layout(config.model, strategy, world, card), strategy
                )
            )
        )
        return
    refuse(strategy, config, world)
    print(f"{preset}, {strategy.name}, {world} GPUs, GB (10^9 bytes) on the fullest rank")
    print("stage " + "".join(f"{name:>12}" for name in FIELDS))
    for index, made in enumerate(plan(config, strategy, world)):
        print(f"{index:>5} " + "".join(f"{getattr(made, name) / 1e9:12.2f}" for name in FIELDS))
    print(host_time.told(config, strategy, card))
