"""One tiny model stored in every way, and a checkpoint as the ranks of a strategy would write it, without ranks."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from molmo_ds.architecture import MolmoConfig
from molmo_ds.config import DataConfig, RunConfig
from molmo_ds.engine.fragments import Fragment
from molmo_ds.engine.launch import World
from molmo_ds.engine.save.writer import Writer
from molmo_ds.engine.shares.tensor_shards import COLUMNS, ROWS
from molmo_ds.testing import synthetic

Piece = tuple[int, tuple[int, ...], Tensor]  # first element, stride, flat numbers


def model(**text) -> MolmoConfig:
    """The micro model of the strategies' tests, with as many words as a tokenizer of bytes has."""
    words = {"vocab_size": 288, "embedding_size": 288, "tie_word_embeddings": False}
    return replace(synthetic.MODEL, text=replace(synthetic.MODEL.text, **(words | text)))


def run_config(architecture: MolmoConfig, tokenizer: Path | None = None, **changes) -> RunConfig:
    """A run of it."""
    data = DataConfig(tokenizer=str(tokenizer or ""))
    return replace(synthetic.config(model=architecture), data=data, **changes)


def flat_parts(name: str, tensor: Tensor, ranks: int) -> list[list[Piece]]:
    """As ZeRO cuts: consecutive stretches, some of them empty."""
    size = -(-tensor.numel() // ranks)
    parts = tensor.reshape(-1).split(size)
    return [[(rank * size, (), part)] for rank, part in enumerate(parts)] + [[]] * (
        ranks - len(parts)
    )


def in_turn(name: str, tensor: Tensor, ranks: int) -> list[list[Piece]]:
    """As the stages of a pipeline hold them: each whole on one rank."""
    owner = sum(map(ord, name)) % ranks
    return [[(0, (), tensor.reshape(-1))] if rank == owner else [] for rank in range(ranks)]


def tensor_parts(name: str, tensor: Tensor, ranks: int) -> list[list[Piece]]:
    """As ranks that share the decoder hold it, and ZeRO cuts each rank's share in two at an odd place."""
    if COLUMNS.fullmatch(name):
        shards = tensor.tensor_split(ranks)
        starts = [rank * shards[0].numel() for rank in range(ranks)]
        return [halves(start, (), 0, part.reshape(-1)) for start, part in zip(starts, shards)]
    if ROWS.fullmatch(name):
        shards = tensor.tensor_split(ranks, 1)
        width = shards[0].shape[1]
        stride = (width, width * ranks)
        return [
            halves(rank * width, stride, 0, part.reshape(-1)) for rank, part in enumerate(shards)
        ]
    return in_turn(name, tensor, ranks)


def expert_parts(name: str, tensor: Tensor, ranks: int) -> list[list[Piece]]:
    """As AutoEP holds experts: the gate's and the up projection's rows are two parameters there."""
    if ".mlp.experts." not in name:
        return flat_parts(name, tensor, ranks)
    out = []
    for rank, mine in enumerate(tensor.tensor_split(ranks)):
        first = rank * len(mine)
        block = mine[0].numel()
        if name.endswith("down_proj"):
            out.append(halves(first * block, (), 0, mine.reshape(-1)))
            continue
        stride = (block // 2, block)
        w1, w3 = (half.reshape(-1) for half in mine.chunk(2, 1))
        out.append(
            halves(first * block, stride, 0, w1) + halves(first * block + block // 2, stride, 0, w3)
        )
    return out


def halves(start: int, stride: tuple[int, ...], phase: int, flat: Tensor) -> list[Piece]:
    """A shard in two pieces."""
    cut = len(flat) * 2 // 5
    if not stride:
        return [(start, (), flat[:cut]), (start + cut, (), flat[cut:])]
    width, distance = stride
    row, phase = divmod(cut, width)
    behind = start + row * distance + phase
    return [
        (start, (width, distance, 0), flat[:cut]),
        (behind, (width, distance, phase), flat[cut:]),
    ]


class Alone(World):
    """One of several ranks, as far as a Writer asks."""

    def gather(self, value: object) -> list[object]:
        """Its own value."""
        return [value]

    def broadcast(self, value: object) -> object:
        """Its own value."""
        return value


def write_checkpoint(
    folder: Path,
    config: RunConfig,
    state: dict[str, Tensor],
    parts: Callable[[str, Tensor, int], list[list[Piece]]] = flat_parts,
    ranks: int = 2,
    step: int = 3,
) -> Path:
    """A checkpoint with Adam's first moment, each rank's files by the Writer that training uses."""
    held: list[list[Fragment]] = [[] for _ in range(ranks)]
    for name, tensor in state.items():
        assert sum(
            len(flat) for part in parts(name, tensor, ranks) for *_, flat in part
        ) == math.prod(tensor.shape)
        for rank, pieces in enumerate(parts(name, tensor, ranks)):
            for start, stride, flat in pieces:
                tensors = {"weight": flat, "exp_avg": flat / 2}
                made = Fragment(
                    name, tuple(tensor.shape), start, tensors, {"step": 3.0}, True, (), True, stride
                )
                held[rank].append(made)
    config = replace(config, async_save=True)
    first, *others = (
        Writer(config, Alone(rank, rank, ranks, torch.device("cpu"))) for rank in range(ranks)
    )
    first.place = first._destination(str(folder), step)
    first._begin()
    for rank, writer in enumerate(others, 1):
        writer.save(str(folder), step, held[rank], {rank: {"step": step}})
        writer.finish()
    first._begin = lambda: None  # or it would clear what the others wrote
    first.save(str(folder), step, held[0], {0: {"step": step}})
    first.thread.join()
    for writer in others:  # which it would have gathered
        first.facts |= writer.facts
    first.finish()
    return folder
