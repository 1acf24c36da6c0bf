"""Bytes per GPU that a run will need, before anything is launched; from shapes alone (the meta device).

What is saved for the backward pass is found by
running one layer of each kind on fake tensors; what DeepSpeed holds follows its sources (0.19) and was compared with
torch's own count of allocations (tests/test_plan_memory.py). CUDA's context, NCCL's buffers (1-2 GB) and
fragmentation come on top.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from molmo_ds.architecture import MolmoConfig
from molmo_ds.config import LoraConfig, OptimConfig, RunConfig
from molmo_ds.engine import ds_config, optim
from molmo_ds.engine.remembered import remembered
from molmo_ds.engine.shares.tensor_shards import shard
from molmo_ds.engine.strategy import Strategy, accumulation, parse
from molmo_ds.model import lora
from molmo_ds.model.connector import GatedMLP
from molmo_ds.model.decoder import DecoderLayer, MoE
from molmo_ds.model.molmo import (
    Molmo,
    component,
    decays,
    is_hidden_matrix,
    layer_list,
    recomputed,
)
from molmo_ds.model.vision import VisionLayer, used_layers
from molmo_ds.ops import cpu_library, dispatch
from molmo_ds.ops.tree_attention import AttentionPlan
from molmo_ds.ops.tree_attention.mask_blocks import LONG
from molmo_ds.ops.weighted_cross_entropy import CHUNK_ELEMENTS


@dataclass
class Plan:
    """Bytes on one GPU, and on the host per GPU."""

    weights: float = 0.0  # that the network computes with, or their shards
    # whole parameters that ZeRO-3 holds between uses, the buffer of a gather, the bucket
    gathered: float = 0.0
    gradients: float = 0.0
    # fp32 weights, and AdamW's two moments or Muon's one
    optimizer: float = 0.0
    activations: float = 0.0  # what waits for the backward pass when the forward pass ends
    pixels: float = 0.0  # of the crops of a micro-batch; on the CPU of all in a step
    logits: float = 0.0  # one chunk, and the gradients that the loss computes ahead
    update: float = 0.0  # working memory of the optimizer's step, when no activations are held
    host: float = 0.0  # on the CPU, of what is offloaded
    # the most at any moment: end of the forward pass, a row's backward pass, or the update
    peak: float = 0.0


@dataclass(frozen=True)
class Kind:
    """Types of numbers: fp32 throughout, bf16 throughout, or fp32 weights and bf16 products under autocast."""

    weights: torch.dtype
    products: torch.dtype
    keeps_casts: bool  # of weights for the backward pass; ZeRO-3's own linear keeps the parameter

    @property
    def casts(self) -> bool:
        """Whether autocast is on."""
        return self.weights != self.products

    def dropped(self, own: nn.Module) -> int:
        """Bytes of casts of a module's matrices that are not kept."""
        if not self.casts or self.keeps_casts:
            return 0
        return self.products.itemsize * sum(p.numel() for p in own.parameters() if p.dim() == 2)


@dataclass
class Row:
    """One row of `layer_list`, as one rank holds it: numbers of parameters, bytes of activations."""

    name: str
    trained: int = 0
    matrices: int = 0  # of these, what Muon updates
    frozen: int = 0
    trained_shard: int = 0  # of one rank of those over which ZeRO splits
    frozen_shard: int = 0
    largest: int = 0  # parameter
    split: int = 0  # parameters of which a rank holds a part, so that ZeRO-3 must gather them
    # shards by optimizer group, which DeepSpeed updates one by one
    groups: Counter = field(default_factory=Counter)
    kept: float = 0.0  # for the backward pass
    again: float = 0.0  # recomputed in the backward pass
    flying: int = 1  # micro-batches for which it is kept


def saved_bytes(run, inputs: tuple, own: nn.Module) -> float:
    """Bytes that autograd keeps of `run(*inputs)` without the weights of `own`; each storage once."""
    mine = {p.untyped_storage()._cdata for p in own.parameters()}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage()._cdata not in mine:
            kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        held = run(*inputs)
    assert held is not None
    return float(sum(kept.values()))


@remembered
def layer_bytes(
    model: MolmoConfig, kind: Kind, rows: tuple[int, int], tokens: int, crops: int, on_gpu: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Kept bytes, and the bytes of the input, of one row of each kind: vision, connector, layers.

    Args:
        rows: sequences of a micro-batch, and the length of one.
        tokens: of these that one rank has.
        crops: of one rank's micro-batch.
    """
    dtype = kind.weights
    batch, length = rows
    text, vision = model.text, model.vision
    grid = vision.image_size // vision.patch_size
    side = grid**2 + vision.class_tokens
    kept, inputs = {}, {}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    # fast versions look at values
    casting = torch.autocast("cpu", kind.products, enabled=kind.casts, cache_enabled=False)
    with FakeTensorMode(allow_non_fake_inputs=True), dispatch.use("torch"), casting:
        block = VisionLayer(vision, 0)
        hidden = torch.empty(crops, side, vision.hidden_size, dtype=dtype, requires_grad=True)
        kept["vision"] = saved_bytes(block.run, (hidden,), block) - kind.dropped(block)
        inputs["vision"] = hidden.numel() * hidden.element_size()
        layer = DecoderLayer(text)
        hidden = torch.empty(batch, tokens, text.hidden_size, dtype=dtype, requires_grad=True)
        ids = torch.ones(batch, tokens, dtype=torch.int32)
        mask = torch.empty(batch, 1, tokens, tokens, dtype=kind.products)
        plan = AttentionPlan(ids, ids, None, mask)
        tables = layer.rotary.tables(ids.long())
        cos, sin = tables[0]
        of_layer = cos.nbytes + sin.nbytes + mask.nbytes  # that all layers share
        shared = len(tables) * (cos.nbytes + sin.nbytes)
        # FlexAttention, a CPU's own kernels and long sequences hold no mask; sequence parallelism that of whole ones
        if not on_gpu and length < LONG:
            kernels = kind.products == torch.float32 and cpu_library.load() is not None
            shared += 0 if kernels else batch * length**2 * mask.itemsize
        extra = 0.0
        # as many rows as chosen experts, through one expert of the same width
        if isinstance(layer.mlp, MoE):
            chosen = batch * tokens * text.num_experts_per_tok
            expert = GatedMLP(text.hidden_size, text.intermediate_size, text.hidden_size)
            x = torch.empty(chosen, text.hidden_size, dtype=dtype, requires_grad=True)
            extra = saved_bytes(expert, (x,), expert) + 2 * x.numel() * x.element_size()
            layer.mlp = nn.Identity()
        weights = torch.ones(batch, tokens)
        run_bytes = saved_bytes(layer.run, (hidden, weights, cos, sin, plan), layer)
        kept["layers"] = run_bytes - kind.dropped(layer) + extra - of_layer
        inputs["layers"] = hidden.numel() * hidden.element_size()
    torch.set_default_dtype(before)
    features = len(vision.feature_layers) * vision.hidden_size
    size = model.connector.pooling_size
    pooled = crops * (-(-grid // size)) ** 2
    inner = model.connector.intermediate_size or text.intermediate_size
    # windows of pictures lie in those of frames where a row holds both, and each is a token of this rank
    window = max(size, model.video.pooling_size or size) ** 2
    if model.family == "molmo2":
        pooled = min(pooled, batch * tokens)
    width = window * features + (
        0 if model.connector.pooling == "stack" else (2 * window + 4) * vision.hidden_size
    )
    kept["connector"] = kind.products.itemsize * pooled * (width + 4 * inner + text.hidden_size)
    # its gradient needs the normalised patches
    kept["embeddings"] = kind.products.itemsize * crops * grid**2 * vision.patch_size**2 * 3
    return kept, inputs | {"connector": 0.0, "shared": shared}


def plan(config: RunConfig, strategy: Strategy, world: int, on_gpu: bool = True) -> list[Plan]:
    """One plan per pipeline stage (one without a pipeline), each for its fullest rank."""
    stages = strategy.stages
    rows = _rows(config, strategy, world, on_gpu)
    bounds = [0, len(rows)]
    if stages > 1:
        from molmo_ds.engine.pipeline import balance

        bounds = balance(layer_list(config.model), config, stages * (2 if strategy.folded else 1))
    steps = accumulation(config, strategy.data_parallel_size(world))
    out = []
    for index in range(stages):
        mine = rows[bounds[index] : bounds[index + 1]]
        for row in mine:
            row.flying = 2 * stages - index if strategy.folded else min(stages - index, steps)
        if strategy.folded:  # DualPipeV's second part of a rank
            second = rows[bounds[-2 - index] : bounds[-1 - index]]
            for row in second:
                row.flying = index + 1
            mine += second
        made = _held(config, strategy, world, on_gpu, mine)
        made.activations = sum(row.flying * row.kept for row in mine)
        if mine[0].name == "vision.embeddings":
            made.pixels = _pixels(config, strategy, on_gpu, steps)
        if mine[-1].name == "head":
            made.logits = _loss(config, strategy, on_gpu, mine[-1])
        made.peak = _peak(made, strategy, mine, steps, _kind(config, strategy, on_gpu).weights)
        out.append(made)
    return out


def _kind(config: RunConfig, strategy: Strategy, on_gpu: bool) -> Kind:
    products = torch.bfloat16 if ds_config.uses_bf16(config, on_gpu) else torch.float32
    weights = torch.float32 if strategy.casts else products
    # ops/linear/cpu.py casts a weight once more in the backward pass
    keeps = strategy.stage < 3 and (on_gpu or config.compile)
    return Kind(weights, products, keeps)


@remembered
def parameters(
    model: MolmoConfig, optimisation: OptimConfig, adapters: LoraConfig
) -> tuple[tuple[str, int, bool, bool], ...]:
    """Name, size, whether it is frozen and whether it is a hidden matrix, of every parameter."""
    with torch.device("meta"):
        network = Molmo(model)
        lora.adapt(network, adapters)
    frozen = optim.frozen_names(network, optimisation, adapters)
    return tuple(
        (name, p.numel(), name in frozen, is_hidden_matrix(name, p))
        for name, p in network.named_parameters()
    )


def _rows(config: RunConfig, strategy: Strategy, world: int, on_gpu: bool) -> list[Row]:
    # every row of the network with its parameters and activations on one rank
    experts, tensors = strategy.experts, strategy.tensor
    model, sequence = config.model, strategy.sequence
    if tensors > 1:
        model = shard(model, tensors)
    replicas = world // strategy.stages // tensors  # over which ZeRO splits
    rows = {name: Row(name) for name, *_ in layer_list(model)}
    for name, numbers, frozen, matrix in parameters(model, config.optim, config.lora):
        row = next(row for row in rows.values() if name.startswith(row.name + "."))
        spread = experts if ".mlp.experts." in name else 1
        count = numbers // spread
        shard_of = -(-count // (replicas // spread))
        row.largest, row.split = (
            max(row.largest, count),
            row.split + (count if shard_of < count else 0),
        )
        if frozen:
            row.frozen, row.frozen_shard = row.frozen + count, row.frozen_shard + shard_of
        else:
            row.trained, row.trained_shard = row.trained + count, row.trained_shard + shard_of
            row.groups[component(name), decays(name), spread] += shard_of
            row.matrices += count * (matrix and config.optim.name == "muon")
    tokens, crops = (
        -(-config.data.sequence_length // sequence),
        -(-config.data.crops_per_sequence // sequence),
    )
    kept, inputs = layer_bytes(
        model,
        _kind(config, strategy, on_gpu),
        (config.micro_batch, config.data.sequence_length),
        tokens,
        crops * config.micro_batch,
        on_gpu,
    )
    behind = used_layers(model.vision)[-1]
    for row in rows.values():
        kind, _, number = row.name.partition(".")
        resting = kind == "vision" and (
            number == "embeddings" or int(number.split(".")[-1]) > behind
        )
        if kind == "vision" and config.optim.vision.freeze:
            continue
        if number == "embeddings":
            row.kept = kept["embeddings"]
        if kind not in kept or resting:
            continue
        row.kept = kept[kind]
        if recomputed(row.name, config.activation_checkpointing):
            row.kept, row.again = (
                0 if config.activation_checkpointing == "offload" else inputs[kind],
                kept[kind],
            )
        if row.name == "layers.0":
            row.kept += inputs["shared"]
    return list(rows.values())


def _held(config: RunConfig, strategy: Strategy, world: int, on_gpu: bool, rows: list[Row]) -> Plan:
    # what DeepSpeed holds from step to step, by ZeRO stage
    zero = parse(strategy.path, ds_config.resolve(strategy, config, world, on_gpu)).zero
    dtype = _kind(config, strategy, on_gpu).weights
    stage = strategy.stage
    moments = 0 if config.optim.name == "sgd" else 8
    size = dtype.itemsize
    trained, frozen = sum(row.trained for row in rows), sum(row.frozen for row in rows)
    shard, largest = sum(row.trained_shard for row in rows), max(row.largest for row in rows)
    group = max(sum((row.groups for row in rows), Counter()).values(), default=0)
    bucket = zero.reduce_bucket
    # Muon's update in fp32, its orthogonal form in bf16 and the product that follows; AdamW's sqrt(v) on a CPU without
    # g++, where all others have none
    roots = 2 if config.optim.name == "muon" else 1 if moments and not on_gpu else 0
    if stage == 0:
        made = Plan(size * (trained + frozen), 0.0, size * trained)
        # fp32 weights, and in the update their gradients
        whole = 4 * trained * (dtype != torch.float32)
        matrices = sum(row.matrices for row in rows)
        made.optimizer = moments * trained - 4 * matrices + whole
        made.update = whole + 4 * roots * largest
        return made
    made = Plan(
        size * (trained + frozen),
        size * min(bucket, trained),
        4 * (trained if stage == 1 else shard),
    )
    # a group's gradients in one piece
    made.optimizer, made.update = shard * (4 + moments), 4 * group * (1 + roots)
    if stage == 3:
        made.weights = size * (shard + sum(row.frozen_shard for row in rows))
        # reuse within max_live parameters keeps them; one gather more, of a layer, fills a flat buffer before it is cut
        split, layer = sum(row.split for row in rows), max(row.split for row in rows)
        live = min(split, max(int(zero.live_parameters), layer))
        flat = min(split, zero.prefetch_bucket + layer)
        made.gathered = size * (bucket + live + flat)
        if zero.hpz > 1:  # a copy split within a node, made at the release
            made.weights += size * (frozen + max(0, trained - live)) / zero.hpz
    if zero.optimizer.device != "none":
        made.host, made.optimizer, made.gradients, made.update = (
            made.optimizer + made.gradients,
            0.0,
            0.0,
            0.0,
        )
        # with the averaged gradients a flat copy for the optimizer
        made.host += 4 * shard if stage == 3 else 0
    if zero.parameters.device != "none":
        made.host, made.weights = made.host + made.weights, 0.0
    return made


def _pixels(config: RunConfig, strategy: Strategy, on_gpu: bool, steps: int) -> float:
    # a rank cuts its share of the crops out of a batch; only the share goes to a GPU
    side = config.model.vision.image_size
    value = 4 if config.model.images.exact else 1
    whole = value * 3 * side**2 * config.micro_batch * config.data.crops_per_sequence
    share = whole / strategy.sequence
    if on_gpu:
        return share
    return whole * steps + (share if strategy.sequence > 1 else 0)


def _loss(config: RunConfig, strategy: Strategy, on_gpu: bool, head: Row) -> float:
    # the loss computes gradients of the hidden states and (in fp32) of the head, chunk of logits after chunk
    kind = _kind(config, strategy, on_gpu)
    size = kind.products.itemsize
    text = config.model.text
    rows = config.micro_batch * -(-config.data.sequence_length // strategy.sequence)
    chunk = min(rows * text.embedding_size, CHUNK_ELEMENTS["cuda" if on_gpu else "cpu"])
    half = size < 4
    # on the CPU also exp(logits), and of bf16 a copy in fp32
    wide = size if on_gpu else size + 4 * (1 + half)
    weight = text.embedding_size * text.hidden_size
    of_head = 0 if head.frozen else (4 + size * half) * weight
    cast = size * weight * kind.casts
    return of_head + cast + kind.weights.itemsize * rows * text.hidden_size + wide * chunk


def _peak(made: Plan, strategy: Strategy, rows: list[Row], steps: int, dtype: torch.dtype) -> float:
    # gradients grow while activations shrink; ZeRO-3, and in bf16 ZeRO-1, has a place for them from the start
    size, placed = (
        dtype.itemsize,
        strategy.stage == 3 or (strategy.stage == 1 and dtype == torch.bfloat16),
    )
    steady = made.weights + made.optimizer + made.pixels + (made.gradients if placed else 0.0)
    whole = sum(row.trained for row in rows)
    per_parameter = made.gradients / whole if whole and not placed else 0.0
    done = made.gradients if steps > 1 and not placed else 0.0  # of earlier micro-steps
    waiting, most = made.activations, made.activations + made.logits + done
    for row in reversed(rows):
        done = min(done + per_parameter * row.trained, max(made.gradients, done))
        # the layer once more; a gradient, and its copy on the way to others
        flow = row.again + 2 * size * row.largest
        most = max(most, waiting + flow + done)
        waiting -= row.flying * row.kept
    return max(
        steady + made.gathered + most, made.weights + made.optimizer + made.gradients + made.update
    )
