"""Bytes per GPU that a run will need, before anything is launched; from shapes alone (the meta device).

python tools/plan_memory.py PRESET STRATEGY HOSTFILE [key=value ...]
    python tools/plan_memory.py molmo_7b_d ds_configs/zero3.json hostfile activation_checkpointing=full micro_batch=1

HOSTFILE is DeepSpeed's (`name slots=8` per line) or a number of GPUs. What is saved for the backward pass is found by
running one layer of each kind on fake tensors; what DeepSpeed holds follows its sources (0.19) and was compared with
torch's own count of allocations (tests/test_plan_memory.py). CUDA's context, NCCL's buffers (1-2 GB) and
fragmentation come on top.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from molmo_ds import config as configs
from molmo_ds.config import RunConfig
from molmo_ds.engine import ds_config, optim
from molmo_ds.engine.ds_config import Strategy
from molmo_ds.model import lora
from molmo_ds.model.connector import GatedMLP
from molmo_ds.model.decoder import DecoderLayer, MoE
from molmo_ds.model.molmo import Molmo, layer_list, recomputed
from molmo_ds.model.vision import VisionLayer, used_layers
from molmo_ds.ops import dispatch
from molmo_ds.ops.rope import rope_table
from molmo_ds.ops.tree_attention import AttentionPlan
from molmo_ds.ops.weighted_cross_entropy import CHUNK_ELEMENTS


@dataclass
class Plan:
    """Bytes on one GPU, and on the host per GPU."""

    weights: float = 0.0  # that the network computes with, or their shards
    gathered: float = 0.0  # whole parameters that ZeRO-3 holds between uses, and buckets
    gradients: float = 0.0
    optimizer: float = 0.0  # fp32 weights and AdamW's two moments
    activations: float = 0.0  # what waits for the backward pass, and the largest layer's working memory
    logits: float = 0.0  # one chunk, and the gradients that the loss computes ahead
    backward: float = 0.0  # the most that activations and gradients take together while one turns into the other
    update: float = 0.0  # working memory of the optimizer's step, when no activations are held
    host: float = 0.0  # on the CPU, of what is offloaded

    @property
    def peak(self) -> float:
        """The larger of the backward pass and the update."""
        steady = self.weights + self.optimizer
        return steady + max(self.backward + self.logits + self.gathered, self.gradients + self.update)


def saved_bytes(run, inputs: tuple, own: nn.Module) -> float:  # noqa: ANN001
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


def layer_bytes(config: RunConfig, model, dtype: torch.dtype, tokens: int, crops: int) -> tuple[dict, dict]:  # noqa: ANN001
    """Kept bytes, and the bytes of the input, of one row of each kind: vision, connector, layers."""
    text, vision, batch = model.text, model.vision, config.micro_batch
    side = (vision.image_size // vision.patch_size) ** 2 + (vision.model_type != "siglip")
    kept, inputs = {}, {}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), dispatch.use("torch"):  # fast versions look at values
        block = VisionLayer(vision, 0)
        hidden = torch.empty(crops, side, vision.hidden_size, dtype=dtype, requires_grad=True)
        kept["vision"] = saved_bytes(block.run, (hidden,), block)
        inputs["vision"] = hidden.numel() * hidden.element_size()
        layer = DecoderLayer(text)
        hidden = torch.empty(batch, tokens, text.hidden_size, dtype=dtype, requires_grad=True)
        ids = torch.ones(batch, tokens, dtype=torch.int32)
        plan = AttentionPlan(ids, ids, None, torch.empty(batch, 1, tokens, tokens, dtype=dtype))
        cos, sin = rope_table(ids.long(), layer.self_attn.head_dim, text.rope_theta, text.rope_scaling)
        shared = cos.nbytes + sin.nbytes + plan.mask.nbytes  # once for all layers
        extra = 0.0
        if isinstance(layer.mlp, MoE):  # as many rows as chosen experts, through one expert of the same width
            rows = batch * tokens * text.num_experts_per_tok
            expert = GatedMLP(text.hidden_size, text.intermediate_size, text.hidden_size)
            x = torch.empty(rows, text.hidden_size, dtype=dtype, requires_grad=True)
            extra = saved_bytes(expert, (x,), expert) + 2 * x.numel() * x.element_size()
            layer.mlp = nn.Identity()
        weights = torch.ones(batch, tokens)
        kept["layers"] = saved_bytes(layer.run, (hidden, weights, cos, sin, plan), layer) + extra - shared
        inputs["layers"] = hidden.numel() * hidden.element_size()
    torch.set_default_dtype(before)
    features = len(vision.feature_layers) * vision.hidden_size
    pooled = crops * -(-(side - (vision.model_type != "siglip")) // model.connector.pooling_size**2)
    window, inner = model.connector.pooling_size**2, model.connector.intermediate_size or text.intermediate_size
    width = window * features + (0 if model.connector.pooling == "stack" else (2 * window + 4) * vision.hidden_size)
    kept["connector"] = dtype.itemsize * pooled * (width + 4 * inner + text.hidden_size)
    return kept, inputs | {"connector": 0.0, "shared": shared}


def plan(config: RunConfig, strategy: Strategy, world: int, on_gpu: bool = True) -> list[Plan]:
    """One plan per pipeline stage (one without a pipeline), each for its fullest rank."""
    ds = ds_config.resolve(strategy, config, world, on_gpu)
    zero, stage = ds["zero_optimization"], strategy.stage
    dtype = torch.bfloat16 if ds_config.uses_bf16(config, on_gpu) else torch.float32
    tensors, experts = ds_config.tensor_size(strategy), ds_config.expert_size(strategy)
    sequence, stages = ds_config.sequence_size(strategy), strategy.ours.get("stages", 1)
    model = config.model
    if tensors > 1:
        from molmo_ds.engine.tensor import shard

        model = shard(model, tensors)
    with torch.device("meta"):
        network = Molmo(model, config.optim.z_loss)
        lora.adapt(network, config.lora)
    frozen = optim.frozen_names(network, config.optim, config.lora)
    rows = [name for name, *_ in layer_list(model)]
    bounds = [0, len(rows)]
    if stages > 1:
        from molmo_ds.engine.pipeline import balance

        bounds = balance(layer_list(config.model), config, stages * (2 if strategy.folded else 1))
    replicas = world // stages // tensors  # over which ZeRO splits
    tokens, crops = -(-config.data.sequence_length // sequence), -(-config.data.crops_per_sequence // sequence)
    kept, inputs = layer_bytes(config, model, dtype, tokens, crops * config.micro_batch)
    micro_steps = ds["gradient_accumulation_steps"]
    out = []
    for index in range(stages):
        flying = dict.fromkeys(rows[bounds[index] : bounds[index + 1]], min(stages - index, micro_steps))
        if strategy.folded:  # DualPipeV's two parts of a rank
            flying = dict.fromkeys(flying, 2 * stages - index)
            flying |= dict.fromkeys(rows[bounds[-2 - index] : bounds[-1 - index]], index + 1)
        mine = list(flying)  # and of how many micro-batches each row's activations are held
        sizes = {"trained": [0, 0], "frozen": [0, 0], "largest": 0}
        for name, parameter in network.named_parameters():
            if any(name.startswith(row + ".") for row in mine):
                count = parameter.numel() // (experts if ".mlp.experts." in name else 1)
                split = replicas // experts if ".mlp.experts." in name else replicas
                of = sizes["frozen" if name in frozen else "trained"]
                of[0] += count
                of[1] += -(-count // split)
                sizes["largest"] = max(sizes["largest"], count)
        out.append(_rank(config, zero, stage, sizes, dtype, replicas))
        acts, largest = _activations(config, model, mine, kept, inputs)
        out[-1].activations = sum(flying[row] * size for row, size in acts.items()) + largest
        grown = dict.fromkeys(mine, 0.0)
        if stage < 3:  # ZeRO-3 has its place for gradients from the start
            for name, parameter in network.named_parameters():
                row = next((row for row in mine if name.startswith(row + ".")), None)
                if row and name not in frozen:
                    part = replicas if stage == 2 else experts if ".mlp.experts." in name else 1
                    grown[row] += parameter.numel() * (4 if stage == 2 else dtype.itemsize) / part
        out[-1].backward = out[-1].activations + (sum(grown.values()) if micro_steps > 1 or stage == 3 else 0.0)
        held, done = out[-1].activations, 0.0
        for row in reversed(mine):
            done += grown[row]
            out[-1].backward = max(out[-1].backward, held + done)
            held -= flying[row] * acts.get(row, 0.0)
        if stage == 3:
            out[-1].backward += out[-1].gradients
        if "head" in mine:
            words = model.text.embedding_size * (0 if "head.lm_head.weight" in frozen else 1)
            chunk = min(
                config.micro_batch * tokens * model.text.embedding_size, CHUNK_ELEMENTS["cuda" if on_gpu else "cpu"]
            )
            out[-1].logits = dtype.itemsize * (words + config.micro_batch * tokens) * model.text.hidden_size
            out[-1].logits += chunk * (4 + dtype.itemsize)
    return out


def _rank(config: RunConfig, zero: dict, stage: int, sizes: dict, dtype: torch.dtype, replicas: int) -> Plan:
    # what DeepSpeed holds, by ZeRO stage
    (trained, shard), (frozen, frozen_shard) = sizes["trained"], sizes["frozen"]
    size, half, moments = dtype.itemsize, dtype != torch.float32, 8 if config.optim.name == "adamw" else 0
    bucket = zero.get("reduce_bucket_size", 500_000_000)
    off = {key: zero.get(key, {}).get("device", "none") != "none" for key in ("offload_optimizer", "offload_param")}
    made = Plan()
    if stage == 0:
        made.weights, made.gradients = size * (trained + frozen), size * trained
        made.optimizer = trained * (moments + (8 if half else 0))  # fp32 weights and their gradients
        made.update = 4 * trained if moments else 0
        return made
    state, gradients = shard * (4 + moments), 4 * shard
    if stage == 3:
        made.weights = size * (shard + frozen_shard)
        live = min(trained + frozen, int(zero.get("stage3_max_live_parameters", 1e9)))
        made.gathered = size * max(live, sizes["largest"]) + size * sizes["largest"]
        made.gathered += 2 * size * bucket  # gradients on their way
        if (hpz := zero.get("zero_hpz_partition_size", 1)) > 1:
            made.weights += size * (trained + frozen) / hpz
    else:
        made.weights = size * (trained + frozen)
        made.gathered = size * min(bucket, trained)
        gradients = size * trained if stage == 1 else gradients
        made.update = 4 * shard  # this rank's gradients, in one piece
    made.update += 4 * shard if moments else 0
    if off["offload_optimizer"]:
        made.host, state, gradients, made.update = state + gradients, 0, 0, 0
    if off["offload_param"]:
        made.host, made.weights = made.host + made.weights, 0
    made.optimizer, made.gradients = state, gradients
    return made


def _activations(  # noqa: ANN202
    config: RunConfig,
    model,  # noqa: ANN001
    mine: list[str],
    kept: dict,
    inputs: dict,
):
    # bytes that each row keeps, and what the largest row that is computed again needs while it is
    total, largest = {}, 0.0
    behind = used_layers(model.vision)[-1]
    for name in mine:
        kind = name.partition(".")[0]
        if kind not in kept or name == "vision.embeddings" or (kind == "vision" and int(name.split(".")[-1]) > behind):
            continue
        if kind == "vision" and config.optim.vision.freeze:
            continue
        again = recomputed(name, config.activation_checkpointing)
        if again:
            largest = max(largest, kept[kind])
        parked = config.activation_checkpointing == "offload"
        total[name] = (0 if parked else inputs[kind]) if again else kept[kind]
        if name == "layers.0":
            total[name] += inputs["shared"]
    return total, largest


def read_hosts(text: str) -> int:
    """The number of GPUs of a DeepSpeed hostfile, or the number itself."""
    if text.isdigit():
        return int(text)
    if not Path(text).is_file():
        raise ValueError(f"There is no hostfile {text}; give a file with lines `name slots=8`, or a number of GPUs.")
    lines = [line.split("#")[0].split() for line in Path(text).read_text().splitlines()]
    slots = [word.removeprefix("slots=") for words in lines for word in words if word.startswith("slots=")]
    if not slots or not all(slot.isdigit() for slot in slots):
        raise ValueError(f"{text} names no slots; write lines `name slots=8`.")
    return sum(map(int, slots))


def main(arguments: list[str]) -> None:
    """Print the table; one line per pipeline stage."""
    if len(arguments) < 3:
        sys.exit(__doc__)
    preset, path, hosts, *overrides = arguments
    world = read_hosts(hosts)
    given = [word for word in overrides if word.startswith("global_batch=")] or [f"global_batch={world}"]
    config: RunConfig = configs.load(None, [f"preset={preset}", f"strategy={path}", *overrides, *given])
    strategy = ds_config.read(path)
    ds_config.refuse(strategy, config, world)
    fields = ("weights", "gathered", "gradients", "optimizer", "activations", "logits", "peak", "host")
    print(f"{preset}, {strategy.name}, {world} GPUs, GB (10^9 bytes) on the fullest rank")
    print("stage " + "".join(f"{name:>12}" for name in fields))
    for index, made in enumerate(plan(config, strategy, world)):
        print(f"{index:>5} " + "".join(f"{getattr(made, name) / 1e9:12.2f}" for name in fields))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"plan_memory: {error}")
