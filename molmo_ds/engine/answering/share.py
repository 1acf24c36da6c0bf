"""What one rank holds of a network that answers, and what it exchanges with the others.

Ranks of a replica differ on the axes "tensor" (shares of heads, columns, experts and words; all have all tokens) and
"stage" (decoder layers); replicas differ on the axis "data". Only hidden states go from stage to stage.

Shapes: B sequences, T tokens, D width, N crops, R rows, S ranks of a tensor group.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import PER_CROP, Batch, Carry
from molmo_ds.engine.answering import quantized
from molmo_ds.engine.answering.layout import Fill, load, refuse, share_of, stage_rows
from molmo_ds.engine.grid import Grid
from molmo_ds.engine.launch import World
from molmo_ds.engine.shares.picture_shares import Deal
from molmo_ds.engine.shares.tensor_shards import share_norms
from molmo_ds.engine.strategy import Strategy
from molmo_ds.model.decoder import DecoderLayer
from molmo_ds.model.molmo import Molmo
from molmo_ds.model.selection import look_ahead


class Share:
    """Some rows of the network, whole or in part.

    Args:
        rows: (name, layer) of this rank's rows of `layer_list`, in order.
        grid: the map of ranks; its groups along "tensor" and along "stage" and "tensor" are made.
    """

    def __init__(self, config: MolmoConfig, rows: list[tuple[str, nn.Module]], grid: Grid) -> None:
        self.config = config
        self.grid = grid
        if config.selection is not None and config.selection.scale_at_test:
            raise ValueError(
                "A cache does not keep the importance of windows; set model.selection.scale_at_test=false, or use"
                " infer/selected.py, in one process."
            )
        layers = dict(rows)
        self.vision = [layer for name, layer in rows if name.startswith(("vision.", "connector"))]
        self.embed = layers.get("embed")
        self.scorer = layers.get("scorer")
        self.layers = [layer for layer in layers.values() if isinstance(layer, DecoderLayer)]
        self.head = layers.get("head")
        self.stage = grid.place("stage")
        self.stages = grid.size("stage")
        self.size = grid.size("tensor")
        self.line = grid.along("stage")  # ranks that pass hidden states on
        # the tensor must live until it is sent
        self.sending: tuple[dist.Work, Tensor] | None = None
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
        cls,
        config: MolmoConfig,
        strategy: Strategy,
        world: World,
        fill: Fill,
        dtype: torch.dtype = torch.float32,
        grid: Grid | None = None,
    ) -> "Share":
        """This rank's rows with weights on its device; all ranks make the same calls.

        Args:
            fill: given what this rank holds of which parameter, yields each with its values.
            grid: a map of the same strategy, whose groups are used again; by default a new one.

        Raises ValueError where the network cannot be cut so, or a parameter is not filled.
        """
        refuse(config, strategy)
        weights = strategy.execution.weights
        grid = grid or Grid(strategy.axes(world.size), world.rank)
        if strategy.tensor > 1:
            grid.make("tensor")
        if strategy.stages > 1:
            grid.make("stage", "tensor")
        module, rows = stage_rows(config, strategy, grid)

        def take_weights() -> None:
            quantized.check(config, weights)
            load(module, config, fill, grid, world.device, dtype)

        world.together(take_weights)
        if weights:
            quantized.quantize([layer for _, layer in rows], weights)
        if strategy.tensor > 1:
            for _, layer in rows:
                if isinstance(layer, DecoderLayer):
                    add_up(layer, grid)
        return cls(config, rows, grid)

    def take(self, batch: Batch) -> Carry:
        """A prefill on this rank's device, without pictures where none are encoded."""
        if self.embed is None:
            batch = batch.replace(**{name: getattr(batch, name)[:0] for name in PER_CROP})
        return Carry.of(batch.to(self.device))

    def run(self, x: Carry, ends: Tensor | None = None) -> Tensor | None:
        """Hidden states as of `compute` after the last decoder layer; None where a later stage has them."""
        return self.send(self.compute(self.receive(x), ends=ends))

    def receive(self, x: Carry) -> Carry:
        """x with the hidden states of the stage before, if there is one; D / S columns of them come to each rank."""
        if self.embed is not None:
            return x
        columns = self.config.text.hidden_size // self.size
        part = torch.empty(*x.input_ids.shape, columns, device=self.device, dtype=self.dtype)
        dist.recv(part, self.line[self.stage - 1])
        return x._replace(hidden=self.gather(part).movedim(0, 2).flatten(2))

    def compute(
        self,
        x: Carry,
        layer_run: Callable[..., Tensor] = DecoderLayer.run,
        ends: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D] after this rank's decoder layers.

        Args:
            layer_run: `DecoderLayer.run`, or what was compiled from it.
            ends: int64 [A], of the flattened B * T: the tokens that the head is for; the last stage gives [A, D].
        """
        if x.hidden is None:
            x = self.embedded(x)
        for layer in self.layers:
            x = layer.with_shared(x)
            cos, sin = layer.positions(x.shared)
            wanted = ends if layer is self.layers[-1] and self.head is not None else None
            hidden = layer_run(layer, x.hidden, x.loss_weights, cos, sin, x.shared.plan, wanted)
            x = x._replace(hidden=hidden)
        return x.hidden

    def embedded(self, x: Carry) -> Carry:
        """x with hidden states before the decoder, where this rank makes them; HeMolmo's prefill with its picks.

        What chooses these passes the decoder too, and no cache may see that pass; it waits for the device.
        """
        if self.embed is None:
            return x
        x = self.embed(self.look(x))
        if x.picked_tokens is None:
            return x
        return self.scorer(look_ahead(self.layers, x, self.config))

    def send(self, hidden: Tensor) -> Tensor | None:
        """Send this rank's columns of hidden states to the next stage; the last stage keeps them."""
        if self.head is not None:
            return hidden
        self.finish()
        part = hidden.chunk(self.size, -1)[self.grid.place("tensor")].contiguous()
        self.sending = dist.isend(part, self.line[self.stage + 1]), part
        return None

    def finish(self) -> None:
        """Wait until what was sent has left."""
        if self.sending is not None:
            self.sending[0].wait()
            self.sending = None

    def look(self, x: Carry) -> Carry:
        """images -> image_features; each rank of a tensor group encodes some of the pictures."""
        if x.images is None or not len(x.images):
            nothing = torch.full((1,), -1, dtype=torch.int64, device=x.input_ids.device)
            features = self.embed.new_embedding.new_zeros(1, self.config.text.hidden_size)
            return x._replace(
                images=None,
                image_masks=None,
                windows=None,
                image_positions=nothing,
                image_features=features,
            )
        if self.size > 1:
            dealt = Deal(x, self.size)
            x = x._replace(**dealt.share(self.grid.place("tensor")))
        for layer in self.vision:
            x = layer(x)
        if self.size == 1:
            return x
        features = self.gather(x.image_features).flatten(0, 1)
        return x._replace(image_features=features, image_positions=dealt.positions)

    def gather(self, x: Tensor) -> Tensor:
        """x of every rank of the tensor group, [S, ...]."""
        if self.size == 1:
            return x[None]
        parts = [
            torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)
        ]
        dist.all_gather(parts, x.contiguous(), group=self.grid.group("tensor"))
        return torch.stack(parts)

    @property
    def first_word(self) -> int:
        """Of those whose logits this rank makes."""
        return share_of(self.config.text.embedding_size, self.size, self.grid.place("tensor")).start

    def all_words(self, logits: Tensor) -> Tensor:
        """This rank's logits [R, E / S] -> those of all words [R, E]."""
        words = self.config.text.embedding_size
        most = share_of(words, self.size, 0).stop
        parts = self.gather(F.pad(logits, (0, most - logits.shape[-1])))
        return parts.transpose(0, 1).flatten(1)[:, :words]

    def any(self, said: bool) -> bool:
        """Whether a rank of the replica says so; all of them ask at the same time."""
        if self.stages * self.size == 1:
            return said
        flag = torch.tensor([float(said)], device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX, self.grid.group("stage", "tensor"))
        return bool(flag.item())

    def tell(self, x: Tensor) -> Tensor:
        """The last stage's x on every rank of the replica, in place; with one stage all have it."""
        if self.stages > 1:
            ranks = self.grid.along("stage", "tensor")
            speaker = ranks[(self.stages - 1) * self.size]
            dist.broadcast(x, speaker, group=self.grid.group("stage", "tensor"))
        return x


def add_up(layer: DecoderLayer, grid: Grid) -> None:
    """Make both branches' outputs the sums over the tensor group, in place: nothing is differentiated here."""
    group = grid.group("tensor")

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        output = output.contiguous()
        dist.all_reduce(output, group=group)
        return output

    layer.self_attn.register_forward_hook(add)
    layer.mlp.register_forward_hook(add)
    share_norms(layer.self_attn, group)
