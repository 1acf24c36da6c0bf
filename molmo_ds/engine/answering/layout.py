"""Which rows of the network, and which part of each parameter, a rank that answers holds.

Ranks of a tensor group hold shares of heads, columns, experts and words; the stages hold decoder layers.
"""

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from molmo_ds.architecture import MolmoConfig
from molmo_ds.engine.grid import Grid
from molmo_ds.engine.shares.tensor_shards import in_columns, in_rows, shard
from molmo_ds.engine.strategy import SETTINGS, Strategy
from molmo_ds.model.decoder import DecoderLayer, MoE
from molmo_ds.model.molmo import layer_list
from molmo_ds.weights.slices import Cut, put

Fill = Callable[[dict[str, Cut]], Iterable[tuple[str, Tensor]]]  # by names of Molmo's parameters
WORDS = "head.lm_head.weight"
EXPERTS = re.compile(r"layers\.\d+\.mlp\.experts\.(gate_up|down)_proj")


def stage_rows(
    config: MolmoConfig, strategy: Strategy, grid: Grid
) -> tuple[nn.Module, list[tuple[str, nn.Module]]]:
    """(a module with the parameters' names of Molmo, rows) of this rank, on the meta device."""
    rows = layer_list(shard(config, strategy.tensor))
    bounds = stage_bounds(config, strategy.stages)
    place = grid.place("tensor")
    module = nn.Module()
    made = []
    with torch.device("meta"):
        for name, kind, arguments in rows[
            bounds[grid.place("stage")] : bounds[grid.place("stage") + 1]
        ]:
            layer = kind(*arguments).eval()
            if name == "head":
                words = share_of(config.text.embedding_size, strategy.tensor, place)
                layer.lm_head.weight = _fewer(layer.lm_head.weight, words.stop - words.start)
            if isinstance(layer, DecoderLayer) and isinstance(layer.mlp, MoE):
                experts = layer.mlp.experts
                held = config.text.num_experts // strategy.tensor
                experts.first = place * held
                experts.gate_up_proj = _fewer(experts.gate_up_proj, held)
                experts.down_proj = _fewer(experts.down_proj, held)
            parent = module
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            parent.add_module(leaf, layer)
            made.append((name, layer))
    return module, made


def stage_bounds(config: MolmoConfig, stages: int) -> list[int]:
    """stages + 1 bounds in `layer_list`: equally many decoder layers, pictures and embedding before the first."""
    names = [name for name, *_ in layer_list(config)]
    first = names.index("layers.0")
    layers = config.text.num_hidden_layers
    return [0, *(first + layers * stage // stages for stage in range(1, stages)), len(names)]


def load(
    module: nn.Module,
    config: MolmoConfig,
    fill: Fill,
    grid: Grid,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give every parameter of this rank, all on the meta device, its values."""
    tied = {WORDS: "embed.embedding"} if config.text.tie_word_embeddings else {}
    wanted = {name: cut_of(name, p.shape, config, grid) for name, p in module.named_parameters()}
    for names in ([n for n in wanted if n not in tied], [n for n in wanted if n in tied]):
        ours = {tied.get(name, name): name for name in names}
        for source, values in (
            fill({source: wanted[name] for source, name in ours.items()}) if ours else ()
        ):
            name = ours.pop(source)
            shape = module.get_parameter(name).shape
            if values.shape != shape:
                raise ValueError(
                    f"The weights' {source} has a part of {list(values.shape)}, not {list(shape)}."
                )
            own = values.to(device, dtype)  # no copy of what is read as it shall be
            put(module, name, nn.Parameter(own, requires_grad=False))
        if ours:
            raise ValueError(
                f"The weights lack {next(iter(ours))}; they are not those of this network."
            )


def cut_of(name: str, shape: torch.Size, config: MolmoConfig, grid: Grid) -> Cut:
    """The part of a whole parameter that this rank holds in a tensor of `shape`."""
    place = grid.place("tensor")
    whole = tuple(slice(0, size) for size in shape)
    if name == WORDS:
        return share_of(config.text.embedding_size, grid.size("tensor"), place), *whole[1:]
    if in_columns(name, config.text) or EXPERTS.fullmatch(name):
        return slice(place * shape[0], (place + 1) * shape[0]), *whole[1:]
    if in_rows(name):
        return whole[0], slice(place * shape[1], (place + 1) * shape[1])
    return whole


def refuse(config: MolmoConfig, strategy: Strategy) -> None:
    """Raise ValueError, one sentence, where a replica of this network cannot be laid out so."""
    text = config.text
    path = strategy.path
    tensor = strategy.tensor
    stages = strategy.stages
    slots = strategy.limits.slots
    idle = sorted(strategy.ds.keys() - {"tensor_parallel", "expert_parallel"})
    parts = {
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
    }
    parts |= (
        {"num_experts": text.num_experts}
        if text.num_experts
        else {"intermediate_size": text.intermediate_size}
    )
    parts |= {"hidden_size": text.hidden_size} if stages > 1 else {}
    uneven = [f"{name}={count}" for name, count in parts.items() if count % tensor]
    if strategy.engine != "inference":
        nearest = "tp8_pp2" if stages > 1 else "ep8" if text.num_experts else "tp8"
        raise ValueError(
            f"{path} is a strategy to train with; answer with ds_configs/infer/{nearest}.json."
        )
    if idle:
        raise ValueError(f"{path}: nothing that answers reads {', '.join(idle)}; leave it out.")
    if strategy.unknown:
        raise ValueError(
            f"{path}: molmo_ds has no setting '{strategy.unknown[0]}'; it has {', '.join(SETTINGS)}."
        )
    if strategy.sequence > 1 or strategy.schedule:
        raise ValueError(
            f"{path}: sequence_parallel_size and schedule are for training; leave them out."
        )
    if config.selection is not None and strategy.shared > 1:
        raise ValueError(
            f"{path}: HeMolmo passes its decoder twice before it answers, which only a rank that holds all of it does;"
            " leave the strategy out."
        )
    if slots % stages:
        raise ValueError(
            f"{path}: {stages} stages take turns with equal parts of slots={slots}; choose a multiple."
        )
    if stages > text.num_hidden_layers:
        raise ValueError(
            f"{path}: {text.num_hidden_layers} layers cannot fill {stages} stages; use fewer."
        )
    if strategy.experts > 1 and not text.num_experts:
        raise ValueError(
            f"{path}: a dense model has no experts to spread; use ds_configs/infer/tp8.json."
        )
    if strategy.experts not in (1, tensor):
        raise ValueError(
            f"{path}: experts lie on the ranks that share the decoder, so write autoep_size={tensor}, which is"
            " autotp_size, or leave expert_parallel out."
        )
    if uneven:
        raise ValueError(
            f"{path}: {uneven[0]} does not divide by autotp_size={tensor}; choose a divisor, and more replicas or"
            " stages for the other ranks."
        )


def share_of(count: int, size: int, place: int) -> slice:
    """The part of `count` words that a rank has; the last ranks may have fewer."""
    most = -(-count // size)
    return slice(min(count, place * most), min(count, (place + 1) * most))


def _fewer(parameter: nn.Parameter, rows: int) -> nn.Parameter:
    return nn.Parameter(parameter[:rows], requires_grad=False)
