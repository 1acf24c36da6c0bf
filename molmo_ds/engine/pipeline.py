"""DeepSpeed's pipeline over the rows of `layer_list`: stages of balanced cost, times data parallelism, with ZeRO-1."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.pipe import LayerSpec
from torch import Tensor, nn

from molmo_ds.batch import Batch, Carry
from molmo_ds.config import LoraConfig, RunConfig
from molmo_ds.engine import deepspeed_0_19, optim
from molmo_ds.engine.deepspeed_0_19 import FoldedStages, Stages
from molmo_ds.engine.engine import DeepSpeedEngine, direct, without_memory
from molmo_ds.engine.loss_scale import fill
from molmo_ds.engine.stage_wire import Wire
from molmo_ds.model import lora
from molmo_ds.model.molmo import layer_list, run_row


class PipelineEngine(DeepSpeedEngine):
    """Each rank holds some rows; micro-batches flow through the stages, activations between neighbours only."""

    def lay_out(self) -> Any:
        """Lay the stages over the ranks as DeepSpeed does: neighbours are the data group of a stage."""
        stages = self.strategy.stages
        self.folded = self.strategy.folded
        self.rows = layer_list(self.config.model, self.config.optim.z_loss)
        self.bounds = balance(self.rows, self.config, stages * (2 if self.folded else 1))
        self.sums: list[Tensor] = []  # of each micro-batch, on the rank that has the loss
        self.wire = Wire()  # to the first row
        specs = [self.spec(i, *row) for i, row in enumerate(self.rows)]
        kind = FoldedStages if self.folded else Stages
        self.module = kind(
            specs,
            self.bounds,
            num_stages=stages,
            loss_fn=self.take_loss,
            dynamic_shape=not self.folded,
        )
        return self.module.mpu()

    def spec(self, i: int, name: str, kind: type[nn.Module], arguments: tuple) -> LayerSpec:
        """Row i as DeepSpeed builds it, on the rank that holds it."""
        first = i in self.bounds
        last = i + 1 in self.bounds[:-1]
        checkpointing = self.config.activation_checkpointing
        return LayerSpec(Row, name, kind, arguments, checkpointing, self.config.lora, first, last)

    @property
    def averaged(self) -> int:
        """The number of gradients of which DeepSpeed takes the mean: here micro-batches count as well."""
        return super().averaged * self.ds["gradient_accumulation_steps"]

    def build_model(self) -> nn.Module:
        """This rank's rows under the names they have in Molmo."""
        stage = nn.Module()
        stage.config = self.config.model
        for row in (layer for layer in self.module.children() if isinstance(layer, Row)):
            parent = stage
            (*path, leaf) = row.name.split(".")
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            parent.add_module(leaf, row.layer)
        return stage

    def initialize(self) -> Any:
        """DeepSpeed's pipeline engine, which clips and sets learning rates just before its own step."""
        engine = direct(self.module, self.build_optimizer, self.ds)
        deepspeed_0_19.before_update(engine, self.before_update)
        deepspeed_0_19.fresh_buffers(engine, self.world.device)
        return engine

    def before_update(self) -> None:
        """Clip, set learning rates and wait for a save's copies, where DeepSpeed is about to step."""
        self.norms = self.clip_gradients()
        self.set_learning_rates()
        self.writer.copied()

    def take_loss(self, outputs: tuple[Tensor, Tensor, Tensor], _: Tensor) -> Tensor:
        """The loss that the last stage differentiates; the three sums are kept for the log."""
        self.sums.append(torch.stack([x.detach().double() for x in outputs]))
        return outputs[0] + outputs[1]

    def feed(
        self, batches: list[Batch], factor: Tensor
    ) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """(arguments of the first row, a label that is not read) of each micro-batch, weights times `factor`.

        DualPipeV's ranks exchange one shape before the first micro-batch, so those of a step are padded to the largest.
        """
        self.engine.micro_batches = len(batches)
        if self.folded:
            self.engine.reset_activation_shape()
            largest = [max(sizes) for sizes in zip(*(batch.sizes for batch in batches))]
            # one by one, where there is data
            batches = (batch.padded(*largest) for batch in batches)
        local = (self.local(batch).weighted(factor) for batch in batches)
        return ((self.wire.pack(Carry.of(batch)), batch.labels) for batch in local)

    def train_step(self, micro_batches: list[Batch]) -> dict[str, float]:
        """One update; see the protocol."""
        self.begin_step()
        factor, counts = self.scale(micro_batches)
        self.sums.clear()
        micro_batches = fill(micro_batches, self.ds["gradient_accumulation_steps"])
        self.engine.train_batch(data_iter=self.feed(micro_batches, factor))
        self.order.end_pass()
        self.writer.poll()
        return self.report(self.sums, counts, self.norms)

    @torch.no_grad()
    def eval_loss(self, micro_batches: list[Batch]) -> dict[str, float]:
        """The global means without an update; see the protocol."""
        factor, counts = self.scale(micro_batches)
        self.sums.clear()
        fewest = len(self.bounds) - 1 if self.folded else 1  # that DualPipeV runs
        micro_batches = fill(micro_batches, max(fewest, *self.world.largest(len(micro_batches))))
        # of a rank without the loss
        nothing = torch.zeros(3, dtype=torch.float64, device=self.world.device)
        self.engine.eval_batch(self.feed(micro_batches, factor), bcast_loss=False)
        return self.means(torch.stack([*self.sums, nothing]).sum(0), counts, {})


class Row(nn.Module):
    """A row of `layer_list`, recomputed in the backward pass where the run asks for it.

    Args:
        first, last: whether it is the first or the last row of a stage, which receives or sends.
    """

    def __init__(
        self,
        name: str,
        kind: type[nn.Module],
        arguments: tuple,
        checkpointing: str,
        adapters: LoraConfig,
        first: bool,
        last: bool,
    ) -> None:
        super().__init__()
        self.name = name
        self.layer = kind(*arguments)
        self.checkpointing = checkpointing
        self.entry = Wire() if first else None
        self.exit = Wire() if last else None
        lora.adapt(self.layer, adapters, f"{name}.")

    def forward(self, x: Carry | tuple[Tensor, ...]) -> Any:
        """The result of the row, or the tensors that are sent of it."""
        if self.entry is not None:
            x = self.entry.unpack(x)
        out = run_row(self.layer, self.name, x, self.checkpointing)
        return out if self.exit is None else self.exit.pack(out)


def balance(rows: list[tuple], config: RunConfig, stages: int) -> list[int]:
    """Stage boundaries that minimise the cost of the most expensive stage: stages + 1 indices into `rows`.

    The cost of a row is its number of products for one packed sequence. What passes between stages must carry a
    gradient, and DeepSpeed's stages need something to optimise: so a row in which nothing learns shares a stage with
    the row before it, or with the first row that learns.

    Raises ValueError if fewer rows learn than there are stages.
    """
    network = without_memory(config)
    frozen = optim.frozen_names(network, config.optim, config.lora)
    costs = [0]  # of the pieces between which a boundary may lie
    starts = [0]  # their first rows
    learnt_before = False
    for i, (name, *_) in enumerate(rows):
        parameters = dict(network.get_submodule(name).named_parameters(name))
        learns = bool(parameters.keys() - frozen)
        if learns and learnt_before:
            costs.append(0)
            starts.append(i)
        learnt_before = learnt_before or learns
        costs[-1] += cost(name, parameters, config)
    if len(costs) < stages:
        raise ValueError(
            f"{len(costs)} layers that learn cannot fill {stages} pipeline stages; use a strategy with fewer stages."
        )
    unit = max(1, math.ceil(sum(costs) / 10**6))  # DeepSpeed's search takes small integers
    cuts = deepspeed_0_19.balanced([max(1, cost // unit) for cost in costs], stages)
    bounds = [*starts, len(rows)]
    return [bounds[cut] for cut in cuts]


def cost(name: str, parameters: dict[str, nn.Parameter], config: RunConfig) -> int:
    """Products of the row `name` for one packed sequence: vectors that it sees times numbers of its matrices."""
    vision = config.model.vision
    data = config.data
    patches = data.crops_per_sequence * (vision.image_size // vision.patch_size) ** 2
    vectors = {"vision": patches, "connector": patches // 4}.get(
        name.partition(".")[0], data.sequence_length
    )
    weights = [parameter for key, parameter in parameters.items() if "embedding" not in key]
    dense = sum(weight.numel() for weight in weights if weight.dim() == 2)
    top_k = config.model.text.num_experts_per_tok
    routed = sum(weight.numel() * (top_k / len(weight)) for weight in weights if weight.dim() == 3)
    return int(vectors * (dense + routed))
