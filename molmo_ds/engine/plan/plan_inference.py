"""What a replica that answers needs and gives: bytes per GPU, and times counted from what must be read, done and sent.

The times are bounds under the assumptions of `Card`, not measurements; a real step is slower (docs/evidence/memory.md).
Shapes: R rows that decode together, T tokens of a packed prefill, S ranks of a tensor group.
"""

import math
from dataclasses import dataclass, field

import torch

from molmo_ds.architecture import MolmoConfig, TextConfig
from molmo_ds.engine.shares.tensor_shards import splits
from molmo_ds.engine.strategy import Limits, Strategy
from molmo_ds.model.molmo import Molmo
from molmo_ds.ops import cpu_library

HEAD, EXPERTS = "head.lm_head.weight", ".mlp.experts."
CONTEXT = 2000  # tokens that a row has when its next one is made
PICTURE = 1230  # tokens of a full picture with its question
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Card:
    """One GPU and its links: an H100 of 80 GB, what it reaches, and how eight of them stand in a host."""

    per_host: int = 8
    host: float = 2e12  # bytes of a host's memory
    memory: float = 76.0 * GIB  # bytes that a process can have
    # of these for a prefill's activations, a batch's logits, NCCL and captured graphs
    working: float = 3.0 * GIB
    bandwidth: float = 3.0e12  # bytes/s read from its memory
    flops: float = 450e12  # FLOP/s in bf16 that matrix products reach
    in_host: float = 360e9  # bytes/s of one GPU's NVLink
    between: float = 45e9  # bytes/s of one GPU from host to host
    reduce_in_host: float = 6e-6  # seconds of the smallest all-reduce, without
    reduce_doubling: float = 1e-6  # these for each doubling of its ranks
    # seconds of the smallest all-reduce over two hosts, or of one message
    reduce_between: float = 30e-6


CARD = Card()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one rank of a stage holds: numbers of parameters, and how many of a token's keys and values."""

    layers: int = 0
    dense: float = 0.0  # of its decoder layers, without experts
    experts: float = 0.0
    head: float = 0.0
    other: float = 0.0  # pictures and embedding: held, but not read by a step
    cache: float = 0.0  # keys and values of one token


@dataclass(frozen=True, kw_only=True)
class Answering:
    """One layout of one model."""

    text: TextConfig
    tensor: int
    stages: list[Stage]
    replicas: int
    card: Card = field(default_factory=Card)
    size: int = 2  # bytes of a number

    @property
    def weights(self) -> float:
        """Bytes on the fullest GPU."""
        return self.size * max(s.dense + s.experts + s.head + s.other for s in self.stages)

    @property
    def room(self) -> float:
        """Bytes that are left for keys and values; not positive where the model does not fit."""
        return self.card.memory - self.card.working - self.weights

    def peak(self, limits: Limits, on_gpu: bool = True) -> float:
        """Bytes at the fullest moment, a packed prefill, on the fullest rank: weights, all slots, activations."""
        slots = limits.slots * limits.slot_tokens
        held = max(_held(stage) + slots * stage.cache for stage in self.stages)
        return self.size * held + self.activations(limits.prefill_tokens, on_gpu)

    def activations(self, tokens: int, on_gpu: bool = True) -> float:
        """Bytes of one layer's work on a prefill: hidden states on their way, and the widest of its two branches."""
        text = self.text
        width = text.head_width
        heads = text.num_attention_heads / self.tensor
        keys = max(1, text.num_key_value_heads / self.tensor)
        # queries, keys and values, these once for each head, what comes out by document and whole
        attention = width * (3 * heads + 2 * keys + (2 * heads if heads > keys else 0))
        mask = 0 if on_gpu else 4 * tokens**2  # PyTorch's attention on the CPU takes a whole one
        if not on_gpu and self.size == 4 and cpu_library.load() is not None:
            # our kernels copy keys and values
            attention = width * (3 * heads + 4 * keys)
            mask = 0
        if text.num_experts:  # a token's experts, of which a rank has its share
            mlp = (
                (4 * text.intermediate_size + 2 * text.hidden_size)
                * text.num_experts_per_tok
                / self.tensor
            )
        else:
            # gate, up and their product
            mlp = 3 * text.intermediate_size / self.tensor
        return self.size * tokens * (4 * text.hidden_size + max(attention, mlp)) + mask

    @property
    def tokens(self) -> int:
        """Tokens whose keys and values fit on every GPU of a replica."""
        left = [
            self.card.memory - self.card.working - self.size * _held(stage) for stage in self.stages
        ]
        return max(0, int(min(room / (self.size * s.cache) for room, s in zip(left, self.stages))))

    def slots(self, slot_tokens: int) -> int:
        """Answers in flight that fit into a replica."""
        return self.tokens // slot_tokens

    @property
    def crosses(self) -> bool:
        """Whether a tensor group spans hosts."""
        return self.tensor > self.card.per_host

    def tick(self, rows: int, stage: Stage) -> float:
        """Seconds of one stage's part of a decode step: weights and cache are read, two sums a layer are made."""
        text = self.text
        used = (
            1.0
            if not text.num_experts
            else 1 - (1 - text.num_experts_per_tok / text.num_experts) ** rows
        )
        read = stage.dense + stage.head + stage.experts * used
        reading = self.size * (read + rows * CONTEXT * stage.cache) / self.card.bandwidth
        chosen = stage.experts * text.num_experts_per_tok / max(text.num_experts, 1)
        doing = 2 * (stage.dense + stage.head + chosen) * rows / self.card.flops
        return max(reading, doing) + self.small_sums(rows, stage.layers)

    def small_sums(self, rows: int, layers: int) -> float:
        """Seconds of the all-reduces of a decode step, in one ring over all ranks of the group."""
        if self.tensor == 1:
            return 0.0
        sent = 2 * (self.tensor - 1) / self.tensor * self.size * rows * self.text.hidden_size
        card = self.card
        if self.crosses:
            return 2 * layers * (card.reduce_between + sent / card.between)
        begin = card.reduce_in_host + card.reduce_doubling * math.log2(self.tensor)
        return 2 * layers * (begin + sent / card.in_host)

    def latency(self, rows: int) -> float:
        """Seconds from one token of a row to its next: every stage in turn, and hidden states between them."""
        send = (
            self.card.reduce_between + self.size * rows * self.text.hidden_size / self.card.between
        )
        return sum(self.tick(rows, stage) for stage in self.stages) + (len(self.stages) - 1) * send

    def step(self, rows: int) -> float:
        """Seconds between two steps of a busy replica; with stages each works on other rows, and sends meanwhile."""
        return max(self.tick(rows, stage) for stage in self.stages)

    def rate(self, rows: int) -> float:
        """Tokens per second of all replicas with `rows` in each batch."""
        return self.replicas * rows / self.step(rows)

    def prefill(self, tokens: int) -> tuple[float, float]:
        """(seconds of matrix products, the head's for all tokens included, and of all-reduces) of a stage's prefill."""
        text = self.text
        share = text.num_experts_per_tok / max(text.num_experts, 1)
        products = sum(
            stage.dense + stage.head + share * stage.experts for stage in self.stages
        ) / len(self.stages)
        compute = 2 * tokens * products / self.card.flops
        layers = max(stage.layers for stage in self.stages)
        payload = 2 * layers * self.size * tokens * text.hidden_size
        inside = min(self.tensor, self.card.per_host)
        sums = 2 * (inside - 1) / inside * payload / self.card.in_host
        # large ones go in two levels: each GPU of a host sums a share of it with the other hosts
        if self.crosses:
            hosts = self.tensor // inside
            sums += 2 * (hosts - 1) / hosts * payload / inside / self.card.between
        return compute, sums

    def prefill_rate(self, tokens: int) -> float:
        """Tokens per second of all replicas that only prefill, each `tokens` at a time."""
        return self.replicas * tokens / sum(self.prefill(tokens))


def answering(
    config: MolmoConfig, tensor: int, stages: int, gpus: int, card: Card = CARD, size: int = 2
) -> Answering:
    """A model on `gpus` GPUs. Raises ValueError where a replica does not divide them."""
    if gpus % (tensor * stages):
        raise ValueError(
            f"A replica has {tensor} x {stages} GPUs, and {gpus} are no multiple; choose another layout."
        )
    text = config.text
    layers = text.num_hidden_layers
    bounds = [layers * stage // stages for stage in range(stages + 1)]
    held = [dict.fromkeys(("dense", "experts", "head", "other"), 0.0) for _ in range(stages)]
    with torch.device("meta"):
        network = Molmo(config)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        kind, stage = _where(name, bounds)
        held[stage][kind] += parameter.numel() / (tensor if _is_cut(name, text) else 1)
    width = text.head_width
    keys = max(1, text.num_key_value_heads / tensor)  # more ranks than heads hold copies
    made = []
    for stage, counts in enumerate(held):
        own = bounds[stage + 1] - bounds[stage]
        made.append(Stage(layers=own, cache=2 * own * keys * width, **counts))
    return Answering(
        text=text,
        tensor=tensor,
        stages=made,
        replicas=gpus // (tensor * stages),
        card=card,
        size=size,
    )


def layout(config: MolmoConfig, strategy: Strategy, gpus: int, card: Card = CARD) -> Answering:
    """The layout that a strategy file asks for."""
    return answering(config, strategy.tensor, strategy.stages, gpus, card)


def report(made: Answering, strategy: Strategy) -> list[str]:
    """The lines that `molmo-ds plan` prints."""
    limits = strategy.limits
    gpus = made.replicas * made.tensor * len(made.stages)
    slots = made.slots(limits.slot_tokens)
    lines = [
        f"{made.replicas} replicas of {made.tensor} x {len(made.stages)} GPUs (tensor x stages); counted, bf16"
    ]
    cache = (
        made.size
        * sum(stage.cache for stage in made.stages)
        * min(made.tensor, made.text.num_key_value_heads)
    )
    lines += [
        f"weights per GPU     {made.weights / GIB:8.1f} GiB",
        f"room for the cache  {made.room / GIB:8.1f} GiB of {made.card.memory / GIB:.0f},"
        f" {made.card.working / GIB:.0f} being for a prefill's work",
        f"tokens of a replica {made.tokens:8,} at {cache / 1024:.0f} KiB",
        f"slots of {limits.slot_tokens:<11}{slots:8,}, and the file asks for {limits.slots}",
    ]
    lines.append(
        f"at most, as asked    {made.peak(limits) / GIB:8.1f} GiB in a prefill of {limits.prefill_tokens} tokens"
    )
    if slots < limits.slots:
        lines.append(
            f"It does not fit: use {slots} slots, shorter ones, or more GPUs to a replica."
        )
    for rows in (1, 64, 128):
        time = made.latency(rows) if rows == 1 else made.step(rows)
        what = "a token" if rows == 1 else "a stage's step" if len(made.stages) > 1 else "a step"
        rate = f", {made.rate(rows):,.0f} tokens/s on {gpus} GPUs" if rows > 1 else ""
        lines.append(f"{rows:>4} rows of {CONTEXT} tokens: {time * 1e3:6.1f} ms {what}{rate}")
    compute, sums = made.prefill(limits.prefill_tokens)
    rate = made.prefill_rate(limits.prefill_tokens)
    lines.append(
        f"prefill of {limits.prefill_tokens} tokens: {compute * 1e3:.0f} ms of products + {sums * 1e3:.0f} of sums;"
        f" {rate:,.0f} tokens/s, {rate / PICTURE:.0f} full pictures/s on {gpus} GPUs"
    )
    return lines


def _held(stage: Stage) -> float:
    return stage.dense + stage.experts + stage.head + stage.other


def _is_cut(name: str, text: TextConfig) -> bool:
    return name == HEAD or EXPERTS in name or splits(name, text)


def _where(name: str, bounds: list[int]) -> tuple[str, int]:
    """(kind, stage) of a parameter."""
    if name.startswith("layers."):
        number = int(name.split(".")[1])
        stage = next(s for s in range(len(bounds) - 1) if number < bounds[s + 1])
        return "experts" if EXPERTS in name else "dense", stage
    return ("head", len(bounds) - 2) if name.startswith("head.") else ("other", 0)
