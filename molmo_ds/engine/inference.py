"""What one rank holds of a network that answers, and what it exchanges with the others.

Ranks of a replica differ on the axes "tensor" (shares of heads, columns, experts and words; all have all tokens) and
"stage" (decoder layers); replicas differ on the axis "data". Only hidden states go from stage to stage.

Shapes: B sequences, T tokens, D width, N crops, Q pooled patches of a crop, R rows, S ranks of a tensor group.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from molmo_ds.config import MolmoConfig
from molmo_ds.engine.grid import Grid
from molmo_ds.engine.launch import World
from molmo_ds.engine.strategy import SETTINGS, Strategy
from molmo_ds.engine.tensor_shards import COLUMNS, ROWS, SharedNorm, shard
from molmo_ds.model.carry import Carry
from molmo_ds.model.decoder import DecoderLayer, MoE
from molmo_ds.model.molmo import Molmo, layer_list

Cut = tuple[slice, ...]  # what a rank holds of a whole parameter, by dimension
Fill = Callable[[dict[str, Cut]], Iterable[tuple[str, Tensor]]]  # by names of Molmo's parameters
WORDS = "head.lm_head.weight"
EXPERTS = re.compile(r"layers\.\d+\.mlp\.experts\.(gate_up|down)_proj")


class Share:
    """Some rows of the network, whole or in part.

    Args:
        rows: (name, layer) of this rank's rows of `layer_list`, in order.
        grid: the map of ranks; its groups along "tensor" and along "stage" and "tensor" are made.
    """

    def __init__(self, config: MolmoConfig, rows: list[tuple[str, nn.Module]], grid: Grid) -> None:
        self.config = config
        self.grid = grid
        layers = dict(rows)
        self.vision = [layer for name, layer in rows if name.startswith(("vision.", "connector"))]
        self.embed = layers.get("embed")
        self.layers = [layer for layer in layers.values() if isinstance(layer, DecoderLayer)]
        self.head = layers.get("head")
        self.stage = grid.place("stage")
        self.stages = grid.size("stage")
        self.size = grid.size("tensor")
        self.line = grid.along("stage")  # ranks that pass hidden states on
        self.sending: tuple[dist.Work, Tensor] | None = None  # the tensor must live until it is sent
        weight = next(self.layers[0].parameters())
        self.device = weight.device
        self.dtype = weight.dtype

    @classmethod
    def whole(cls, model: Molmo) -> "Share":
        """A network in one process' hands."""
        rows = [(name, model.get_submodule(name)) for name in model.rows]
        return cls(model.config, rows, Grid({}, 0))

    @classmethod
    def build(
        cls, config: MolmoConfig, strategy: Strategy, world: World, fill: Fill, dtype: torch.dtype = torch.float32
    ) -> "Share":
        """This rank's rows with weights on its device; all ranks call alike.

        Args:
            fill: given what this rank holds of which parameter, yields each with its values.

        Raises ValueError where the network cannot be cut so, or a parameter is not filled.
        """
        refuse(config, strategy)
        grid = Grid(strategy.axes(world.size), world.rank)
        if strategy.tensor > 1:
            grid.make("tensor")
        if strategy.stages > 1:
            grid.make("stage", "tensor")
        module, rows = stage_rows(config, strategy, grid)
        failure = None
        try:
            load(module, config, fill, grid, world.device, dtype)
        except (ValueError, OSError) as error:
            failure = error
        failures = world.gather(failure) if world.size > 1 else [failure]
        for failure in filter(None, failures):  # of whichever rank: all end with its sentence
            raise failure
        if strategy.tensor > 1:
            for _, layer in rows:
                if isinstance(layer, DecoderLayer):
                    add_up(layer, grid)
        return cls(config, rows, grid)

    def run(self, x: Carry) -> Tensor | None:
        """Hidden states [B, T, D] behind the last decoder layer; None where a later stage has them."""
        if self.embed is not None:
            x = self.embed(self.look(x))
        else:
            hidden = torch.empty(*x.input_ids.shape, self.config.text.hidden_size, device=self.device, dtype=self.dtype)
            dist.recv(hidden, self.line[self.stage - 1])
            x = x._replace(hidden=hidden)
        for layer in self.layers:
            x = layer(x)
        if self.head is not None:
            return x.hidden
        self.finish()
        hidden = x.hidden.contiguous()
        self.sending = dist.isend(hidden, self.line[self.stage + 1]), hidden
        return None

    def finish(self) -> None:
        """Wait until what was sent has left."""
        if self.sending is not None:
            self.sending[0].wait()
            self.sending = None

    def look(self, x: Carry) -> Carry:
        """images -> image_features; each rank of a tensor group encodes some of the crops."""
        if x.images is None or not len(x.images):
            nothing = torch.full((1, 1), -1, dtype=torch.int64, device=x.input_ids.device)
            features = self.embed.new_embedding.new_zeros(1, self.config.text.hidden_size)
            return x._replace(images=None, image_masks=None, image_positions=nothing, image_features=features)
        place = self.grid.place("tensor")
        missing = -len(x.images) % self.size
        images = _longer(x.images, missing, 0)[place :: self.size]
        masks = _longer(x.image_masks, missing, 0)[place :: self.size]
        positions = _longer(x.image_positions, missing, -1)
        x = x._replace(images=images, image_masks=masks)
        for layer in self.vision:
            x = layer(x)
        features = self.gather(x.image_features).flatten(0, 1)
        ordered = torch.cat([positions[first :: self.size] for first in range(self.size)])
        return x._replace(image_features=features, image_positions=ordered)

    def gather(self, x: Tensor) -> Tensor:
        """x of every rank of the tensor group, [S, ...]."""
        if self.size == 1:
            return x[None]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.grid.group("tensor"))
        return torch.stack(parts)

    @property
    def first_word(self) -> int:
        """Of those whose logits this rank makes."""
        return _share(self.config.text.embedding_size, self.size, self.grid.place("tensor")).start

    def all_words(self, logits: Tensor) -> Tensor:
        """This rank's logits [R, E / S] -> those of all words [R, E]."""
        words = self.config.text.embedding_size
        most = _share(words, self.size, 0).stop
        parts = self.gather(F.pad(logits, (0, most - logits.shape[-1])))
        return parts.transpose(0, 1).flatten(1)[:, :words]

    def tell(self, x: Tensor) -> Tensor:
        """The last stage's x on every rank of the replica, in place; with one stage all have it."""
        if self.stages > 1:
            ranks = self.grid.along("stage", "tensor")
            speaker = ranks[(self.stages - 1) * self.size]
            dist.broadcast(x, speaker, group=self.grid.group("stage", "tensor"))
        return x


def stage_rows(config: MolmoConfig, strategy: Strategy, grid: Grid) -> tuple[nn.Module, list[tuple[str, nn.Module]]]:
    """(a module with the parameters' names of Molmo, rows) of this rank, on the meta device."""
    rows = layer_list(shard(config, strategy.tensor))
    bounds = stage_bounds(config, strategy.stages)
    place = grid.place("tensor")
    module = nn.Module()
    made = []
    with torch.device("meta"):
        for name, kind, arguments in rows[bounds[grid.place("stage")] : bounds[grid.place("stage") + 1]]:
            layer = kind(*arguments).eval()
            if name == "head":
                words = _share(config.text.embedding_size, strategy.tensor, place)
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
    module: nn.Module, config: MolmoConfig, fill: Fill, grid: Grid, device: torch.device, dtype: torch.dtype
) -> None:
    """Give every parameter of this rank, all on the meta device, its values."""
    tied = {WORDS: "embed.embedding"} if config.text.tie_word_embeddings else {}
    wanted = {name: cut_of(name, p.shape, config, grid) for name, p in module.named_parameters()}
    for names in ([n for n in wanted if n not in tied], [n for n in wanted if n in tied]):
        ours = {tied.get(name, name): name for name in names}
        for source, values in fill({source: wanted[name] for source, name in ours.items()}) if ours else ():
            owner, _, leaf = ours.pop(source).rpartition(".")
            shape = module.get_submodule(owner).get_parameter(leaf).shape
            if values.shape != shape:
                raise ValueError(f"The weights' {source} has a part of {list(values.shape)}, not {list(shape)}.")
            own = torch.empty(shape, dtype=dtype, device=device).copy_(values)
            setattr(module.get_submodule(owner), leaf, nn.Parameter(own, requires_grad=False))
        if ours:
            raise ValueError(f"The weights lack {next(iter(ours))}; they are not those of this network.")


def cut_of(name: str, shape: torch.Size, config: MolmoConfig, grid: Grid) -> Cut:
    """The part of a whole parameter that this rank holds in a tensor of `shape`."""
    place = grid.place("tensor")
    whole = tuple(slice(0, size) for size in shape)
    if name == WORDS:
        return _share(config.text.embedding_size, grid.size("tensor"), place), *whole[1:]
    if COLUMNS.fullmatch(name) or EXPERTS.fullmatch(name):
        return slice(place * shape[0], (place + 1) * shape[0]), *whole[1:]
    if ROWS.fullmatch(name):
        return whole[0], slice(place * shape[1], (place + 1) * shape[1])
    return whole


def add_up(layer: DecoderLayer, grid: Grid) -> None:
    """Make both branches' outputs the sums over the tensor group, in place: nothing is differentiated here."""
    group = grid.group("tensor")

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        output = output.contiguous()
        dist.all_reduce(output, group=group)
        return output

    attention = layer.self_attn
    attention.register_forward_hook(add)
    layer.mlp.register_forward_hook(add)
    if attention.q_norm is not None:
        attention.q_norm = SharedNorm(attention.q_norm, group)
        attention.k_norm = SharedNorm(attention.k_norm, group)


def refuse(config: MolmoConfig, strategy: Strategy) -> None:
    """Raise ValueError, one sentence, where a replica of this network cannot be laid out so."""
    text = config.text
    path = strategy.path
    tensor = strategy.tensor
    stages = strategy.stages
    slots = strategy.limits.slots
    idle = sorted(strategy.ds.keys() - {"tensor_parallel", "expert_parallel"})
    parts = {"num_attention_heads": text.num_attention_heads, "num_key_value_heads": text.num_key_value_heads}
    parts |= {"num_experts": text.num_experts} if text.num_experts else {"intermediate_size": text.intermediate_size}
    uneven = [f"{name}={count}" for name, count in parts.items() if count % tensor]
    if strategy.engine != "inference":
        nearest = "tp8_pp2" if stages > 1 else "ep8" if text.num_experts else "tp8"
        raise ValueError(f"{path} is a strategy to train with; answer with ds_configs/infer/{nearest}.json.")
    if idle:
        raise ValueError(f"{path}: nothing that answers reads {', '.join(idle)}; leave it out.")
    if strategy.unknown:
        raise ValueError(f"{path}: molmo_ds has no setting '{strategy.unknown[0]}'; it has {', '.join(SETTINGS)}.")
    if strategy.sequence > 1 or strategy.schedule:
        raise ValueError(f"{path}: sequence_parallel_size and schedule are for training; leave them out.")
    if slots % stages:
        raise ValueError(f"{path}: {stages} stages take turns with equal parts of slots={slots}; choose a multiple.")
    if stages > text.num_hidden_layers:
        raise ValueError(f"{path}: {text.num_hidden_layers} layers cannot fill {stages} stages; use fewer.")
    if strategy.experts > 1 and not text.num_experts:
        raise ValueError(f"{path}: a dense model has no experts to spread; use ds_configs/infer/tp8.json.")
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


def _share(count: int, size: int, place: int) -> slice:
    most = -(-count // size)
    return slice(min(count, place * most), min(count, (place + 1) * most))


def _fewer(parameter: nn.Parameter, rows: int) -> nn.Parameter:
    return nn.Parameter(parameter[:rows], requires_grad=False)


def _longer(x: Tensor, more: int, value: int) -> Tensor:
    return torch.cat((x, x.new_full((more, *x.shape[1:]), value))) if more else x
