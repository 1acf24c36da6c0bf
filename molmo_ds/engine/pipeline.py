"""DeepSpeed's pipeline over the rows of `layer_list`: stages of balanced cost, times data parallelism, with ZeRO-1."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.pipe import DualPipeVModule, LayerSpec, PipelineModule
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.utils import partition_balanced
from torch import Tensor, nn

from molmo_ds.batch import Batch
from molmo_ds.config import RunConfig
from molmo_ds.engine.weights import scale
from molmo_ds.engine.zero import ZeroEngine
from molmo_ds.model.molmo import Molmo, component, layer_list, run_row


class PipelineEngine(ZeroEngine):
    """Each rank holds some rows; micro-batches flow through the stages, activations between neighbours only."""

    def arrange(self) -> None:
        """Lay the stages over the ranks as DeepSpeed does: a stage's data group are neighbours."""
        stages, self.folded = self.strategy.ours["stages"], self.strategy.folded
        self.rows = layer_list(self.config.model, self.config.optim.z_loss)
        self.bounds = balance(self.rows, self.config, stages * (2 if self.folded else 1))
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.world.device)
        specs = [
            LayerSpec(Row, name, kind, args, self.config.activation_checkpointing) for name, kind, args in self.rows
        ]
        kind = FoldedStages if self.folded else Stages
        self.module = kind(specs, self.bounds, num_stages=stages, loss_fn=self.take_loss, dynamic_shape=not self.folded)
        self.grid = grid = self.module.mpu()
        self.data_rank, self.data_size = grid.get_data_parallel_rank(), grid.get_data_parallel_world_size()
        self.data_group, self.keeper = grid.get_data_parallel_group(), self.data_rank == 0
        self.replicas = self.data_size * self.ds_accumulation()  # DeepSpeed averages over micro-batches as well

    def ds_accumulation(self) -> int:
        """Micro-batches of a step."""
        return self.config.global_batch // (self.data_size * self.config.micro_batch)

    def build_model(self) -> nn.Module:
        """This rank's rows under the names they have in Molmo."""
        stage = nn.Module()
        stage.config = self.config.model
        for row in (layer for layer in self.module.children() if isinstance(layer, Row)):
            parent, (*path, leaf) = stage, row.name.split(".")
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            parent.add_module(leaf, row.layer)
        return stage

    def prepare(self, optimizer: torch.optim.Optimizer) -> Any:
        """DeepSpeed's pipeline engine, which clips and sets learning rates just before its own step."""
        import deepspeed

        engine, *_ = deepspeed.initialize(
            model=self.module, optimizer=optimizer, config=self.ds, dist_init_required=False
        )
        # its own norm makes one collective per parameter group, and stages differ in their groups: it would hang
        nothing = torch.zeros((), device=self.world.device)
        engine.optimizer.scaled_global_norm = lambda *_: nothing
        # it gives a buffer again for another type, which crashes a stage that receives from both sides
        engine._allocate_or_extend_buffers = lambda _, shape, dtype: nothing.new_empty(shape, dtype=dtype)
        steps = engine._INSTRUCTION_MAP[schedule.OptimizerStep]

        def step(pipeline: Any) -> None:
            self.norms = self.clip_gradients()
            self.set_learning_rates()
            steps(pipeline)

        engine._INSTRUCTION_MAP = {**engine._INSTRUCTION_MAP, schedule.OptimizerStep: step}
        return engine

    def take_loss(self, outputs: tuple[Tensor, Tensor, Tensor], _: Tensor) -> Tensor:
        """What the last stage differentiates; the three sums are kept for the log."""
        self.sums += torch.stack([x.detach().double() for x in outputs])
        return outputs[0] + outputs[1]

    def feed(self, batches: list[Batch]) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """(arguments of the first row, a label that nobody reads) of each micro-batch.

        DualPipeV's micro-batches have one shape, which its ranks exchange before the first of them: each step's are
        padded to the largest of that step, whatever the next step's will be.
        """
        if self.folded:
            nothing = batches[0].replace(loss_weights=torch.zeros_like(batches[0].loss_weights))
            batches = batches + [nothing] * (len(self.bounds) - 1 - len(batches))  # it runs no fewer; evaluation may
            self.engine.reset_activation_shape()
        self.engine.micro_batches = len(batches)
        tokens, crops = (max(sizes) for sizes in zip(*(batch.sizes for batch in batches)))
        read = (batch.padded(tokens, crops) if self.folded else batch for batch in batches)  # where there is data
        return ((batch.tensors(), batch.labels) for batch in read)

    def train_step(self, micro_batches: list[Batch]) -> dict[str, float]:
        """One update; see the protocol."""
        self.begin_step()
        scaled, totals = scale(micro_batches, self.replicas, self.data_group, self.world.device, self.config.model)
        self.sums.zero_()
        self.engine.train_batch(data_iter=self.feed(scaled))
        self.writer.poll()
        return self.report(self.sums.clone(), totals, self.norms)

    @torch.no_grad()
    def eval_loss(self, micro_batches: list[Batch]) -> dict[str, float]:
        """The global means without an update; see the protocol."""
        scaled, totals = scale(micro_batches, self.replicas, self.data_group, self.world.device, self.config.model)
        self.sums.zero_()
        self.engine.eval_batch(self.feed(scaled), bcast_loss=False)
        return self.means(self.sums.clone(), totals)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter of the model, on whichever stage, with its shape."""
        with torch.device("meta"):
            return {name: tuple(p.shape) for name, p in Molmo(self.config.model).named_parameters()}


class Stages(PipelineModule):
    """DeepSpeed's module, cut where we say."""

    def __init__(self, specs: list[LayerSpec], bounds: list[int], **arguments: Any) -> None:
        self.bounds = bounds
        super().__init__(specs, **arguments)

    def _partition_layers(self, method: str = "") -> None:
        stage = self._topo.get_coord(self.global_rank).pipe
        self.parts = self.bounds
        self._set_bounds(self.bounds[stage], self.bounds[stage + 1])


class FoldedStages(DualPipeVModule, Stages):
    """DualPipeV's module: rank r of P holds parts r and 2P - 1 - r of our 2P, so the first has data and loss."""


class Row(nn.Module):
    """A row of `layer_list`, computed again in the backward pass where the run asks for it."""

    def __init__(self, name: str, kind: type[nn.Module], arguments: tuple, checkpointing: str) -> None:
        super().__init__()
        self.name, self.layer, self.checkpointing = name, kind(*arguments), checkpointing

    def forward(self, x: tuple[Tensor, ...]) -> Any:
        """The row's own tuple."""
        return run_row(self.layer, self.name, x, self.checkpointing)


def balance(rows: list[tuple], config: RunConfig, stages: int) -> list[int]:
    """stages + 1 bounds that make the dearest stage as cheap as can be, by counted products per packed sequence.

    No cut falls in front of the first row that learns: what passes between stages must carry a gradient.
    """
    vision, data = config.model.vision, config.data
    crops, tokens = data.crops_per_sequence, data.sequence_length
    patches = (vision.image_size // vision.patch_size) ** 2
    costs, learns = [], []
    with torch.device("meta"):
        for name, kind, arguments in rows:
            layer = kind(*arguments)
            weights = {n: p for n, p in layer.named_parameters() if p.dim() > 1 and "embedding" not in n}
            seen = (
                crops * patches
                if name.startswith("vision.")
                else crops * patches // 4
                if name == "connector"
                else tokens
            )
            routed = [
                p.numel() * (config.model.text.num_experts_per_tok / len(p)) for p in weights.values() if p.dim() == 3
            ]
            dense = [p.numel() for p in weights.values() if p.dim() == 2]
            costs.append(int(seen * (sum(dense) + sum(routed))))
            parts = {component(f"{name}.{n}") for n, _ in layer.named_parameters()}
            learns.append(any(not getattr(config.optim, part).freeze for part in parts))
    first = learns.index(True) if True in learns else 0
    joined = [sum(costs[: first + 1]), *costs[first + 1 :]]
    if len(joined) < stages:
        raise ValueError(
            f"{len(joined)} layers cannot fill {stages} pipeline stages; use a strategy with fewer stages."
        )
    unit = max(1, math.ceil(sum(joined) / 10**6))
    cuts = partition_balanced([max(1, cost // unit) for cost in joined], stages)
    bounds = [0, *(cut + first for cut in cuts[1:])]
    for start, stop in itertools.pairwise(bounds):
        if not any(learns[start:stop]):
            raise ValueError(
                f"The pipeline stage with {rows[start][0]} to {rows[stop - 1][0]} learns nothing, which DeepSpeed's "
                "pipeline cannot run; unfreeze a component or use strategy=ds_configs/zero3.json."
            )
    return bounds
