"""DeepSpeed's pipeline over the rows of `layer_list`: stages of balanced cost, times data parallelism, with ZeRO-1."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.pipe import LayerSpec
from torch import Tensor, nn

from molmo_ds.batch import Batch
from molmo_ds.config import LoraConfig, RunConfig
from molmo_ds.engine import deepspeed_0_19, optim
from molmo_ds.engine.deepspeed_0_19 import FoldedStages, Stages
from molmo_ds.engine.engine import DeepSpeedEngine, direct, without_memory
from molmo_ds.engine.loss_scale import fill
from molmo_ds.engine.stage_wire import Wire
from molmo_ds.model import lora
from molmo_ds.model.carry import Carry
from molmo_ds.model.molmo import layer_list, run_row


class PipelineEngine(DeepSpeedEngine):
    """Each rank holds some rows; micro-batches flow through the stages, activations between neighbours only."""

    def lay_out(self) -> Any:
        """Lay the stages over the ranks as DeepSpeed does: a stage's data group are neighbours."""
        stages = self.strategy.stages
        self.folded = self.strategy.folded
        self.rows = layer_list(self.config.model, self.config.optim.z_loss)
        self.bounds = balance(self.rows, self.config, stages * (2 if self.folded else 1))
        self.sums: list[Tensor] = []  # of each micro-batch, on the rank that has the loss
        self.wire = Wire()  # to the first row
        settings = self.config.activation_checkpointing, self.config.lora
        specs = [
            LayerSpec(Row, name, kind, args, *settings, i in self.bounds, i + 1 in self.bounds[:-1])
            for i, (name, kind, args) in enumerate(self.rows)
        ]
        kind = FoldedStages if self.folded else Stages
        self.module = kind(specs, self.bounds, num_stages=stages, loss_fn=self.take_loss, dynamic_shape=not self.folded)
        return self.module.mpu()

    @property
    def averaged(self) -> int:
        """Over how many gradients DeepSpeed takes the mean: here over micro-batches as well."""
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
        deepspeed_0_19.before_update(engine, self.before_update, self.world.device)
        deepspeed_0_19.fresh_buffers(engine, self.world.device)
        return engine

    def before_update(self) -> None:
        """Clip and set learning rates, where DeepSpeed is about to step."""
        self.norms = self.clip_gradients()
        self.set_learning_rates()

    def take_loss(self, outputs: tuple[Tensor, Tensor, Tensor], _: Tensor) -> Tensor:
        """What the last stage differentiates; the three sums are kept for the log."""
        self.sums.append(torch.stack([x.detach().double() for x in outputs]))
        return outputs[0] + outputs[1]

    def feed(self, batches: list[Batch], factor: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """(arguments of the first row, a label that nobody reads) of each micro-batch, weights times `factor`.

        DualPipeV's micro-batches have one shape, which its ranks exchange before the first of them: each step's are
        padded to the largest of that step, whatever the next step's will be.
        """
        self.engine.micro_batches = len(batches)
        if self.folded:
            self.engine.reset_activation_shape()
            sizes = [max(sizes) for sizes in zip(*(batch.sizes for batch in batches))]
            batches = (batch.padded(*sizes) for batch in batches)  # one by one, where there is data
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
        nothing = torch.zeros(3, dtype=torch.float64, device=self.world.device)  # of a rank without the loss
        self.engine.eval_batch(self.feed(micro_batches, factor), bcast_loss=False)
        return self.means(torch.stack([*self.sums, nothing]).sum(0), counts, {})


class Row(nn.Module):
    """A row of `layer_list`, recomputed in the backward pass where the run asks for it.

    Args:
        begins, ends: whether it is the first or the last row of a stage, which takes or gives what is sent.
    """

    def __init__(
        self,
        name: str,
        kind: type[nn.Module],
        arguments: tuple,
        checkpointing: str,
        adapters: LoraConfig,
        begins: bool,
        ends: bool,
    ) -> None:
        super().__init__()
        self.name = name
        self.layer = kind(*arguments)
        self.checkpointing = checkpointing
        self.entry = Wire() if begins else None
        self.exit = Wire() if ends else None
        lora.adapt(self.layer, adapters, f"{name}.")

    def forward(self, x: Carry | tuple[Tensor, ...]) -> Any:
        """The row's own result, or what is sent of it."""
        if self.entry is not None:
            x = self.entry.unpack(x)
        out = run_row(self.layer, self.name, x, self.checkpointing)
        return out if self.exit is None else self.exit.pack(out)


def balance(rows: list[tuple], config: RunConfig, stages: int) -> list[int]:
    """stages + 1 bounds that make the dearest stage as cheap as can be, by counted products per packed sequence.

    A row in which nothing learns shares a stage with the one in front of it, or, before the first that learns, with
    that: what passes between stages must carry a gradient, and DeepSpeed's stages need something to optimise.
    """
    vision = config.model.vision
    data = config.data
    network = without_memory(config)
    frozen = optim.frozen_names(network, config.optim, config.lora)
    crops = data.crops_per_sequence
    tokens = data.sequence_length
    patches = (vision.image_size // vision.patch_size) ** 2
    rows_of = {"vision": crops * patches, "connector": crops * patches // 4}
    # of the parts that may stand alone
    costs = [0]
    starts = [0]
    begun = False
    for i, (name, *_) in enumerate(rows):
        parameters = dict(network.get_submodule(name).named_parameters(name))
        learns = bool(parameters.keys() - frozen)
        if learns and begun:
            costs.append(0)
            starts.append(i)
        begun = begun or learns
        weights = [p for n, p in parameters.items() if p.dim() > 1 and "embedding" not in n]
        seen = rows_of.get(name.partition(".")[0], tokens)
        routed = [p.numel() * (config.model.text.num_experts_per_tok / len(p)) for p in weights if p.dim() == 3]
        costs[-1] += int(seen * (sum(p.numel() for p in weights if p.dim() == 2) + sum(routed)))
    if len(costs) < stages:
        raise ValueError(
            f"{len(costs)} layers that learn cannot fill {stages} pipeline stages; use a strategy with fewer stages."
        )
    unit = max(1, math.ceil(sum(costs) / 10**6))
    cuts = deepspeed_0_19.balanced([max(1, cost // unit) for cost in costs], stages)
    return [[*starts, len(rows)][cut] for cut in cuts]
