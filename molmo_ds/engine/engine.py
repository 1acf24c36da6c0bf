"""The engine: DeepSpeed around one network, composed of the parts of a strategy (engine/parallel)."""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from molmo_ds.batch import Batch
from molmo_ds.config import RunConfig
from molmo_ds.engine import deepspeed_0_19, ds_config, fragments, optim, optimizers, zero3_hooks
from molmo_ds.engine.by_accelerate import through_accelerate
from molmo_ds.engine.checks import collectives
from molmo_ds.engine.checks.gradient_order import GradientOrder
from molmo_ds.engine.compiled import compile_layers
from molmo_ds.engine.feeder import Feeder
from molmo_ds.engine.filling import Filling
from molmo_ds.engine.grid import COPIES, LOSSES
from molmo_ds.engine.launch import World
from molmo_ds.engine.loss_scale import COUNTS, fill, scale
from molmo_ds.engine.parallel import grid_of, parts
from molmo_ds.engine.save import restore
from molmo_ds.engine.save.copies import buffer
from molmo_ds.engine.save.writer import Writer
from molmo_ds.engine.strategy import Strategy
from molmo_ds.model import lora
from molmo_ds.model.molmo import Molmo
from molmo_ds.weights.blocks import Damaged
from molmo_ds.weights.checkpoint import Found
from molmo_ds.weights.first_weights import begun_from, check_share, first_weights


class DeepSpeedEngine:
    """See the protocol `Engine`; every rank runs every module in every micro-step."""

    def __init__(self, config: RunConfig, world: World, strategy: Strategy) -> None:
        self.config = config
        self.world = world
        self.strategy = strategy
        self.step = 0
        # the micro-batches of this rank's last step whose loss is not finite
        self.not_finite: list[int] = []
        topology = self.lay_out()
        self.grid = grid_of(strategy, world, topology)
        self.order = GradientOrder(
            self.grid.group(*LOSSES),
            world.device,
            self.grid.place("stage"),
            self.grid.size("stage"),
        )
        self.ds = ds_config.resolve(strategy, config, world.size, world.device.type == "cuda")
        ds_config.check_with_deepspeed(strategy, self.ds, topology)
        if self.ds.get("torch_autocast", {}).get("enabled"):
            # the cache would keep a bf16 copy of every weight, also of those that ZeRO-3 released
            torch.set_autocast_cache_enabled(False)
        self.parts = parts(strategy, config, world, self.grid, self.ds)
        self.defers = any(part.defers for part in self.parts)
        self.model = self.build_model()
        for part in self.parts:
            part.transform(self.model)
        if config.compile:
            compile_layers(self.model, config.compile_mode)
        frozen = optim.frozen_names(self.model, config.optim, config.lora)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.groups = optim.parameter_groups(self.model, config.optim)
        if not self.groups:
            raise ValueError(
                "Every component is frozen; set optim.connector.freeze=false or another to train."
            )
        self.order.watch(self.model.named_parameters())
        with ds_config.in_sentences(strategy):
            self.engine = self.initialize()
        deepspeed_0_19.take_no_norm(self.engine)
        zero3_hooks.lighten(self.engine, by_layer=not config.compile)
        for part in self.parts:
            part.settle(self.engine, self.model)
        self.feeder = Feeder(world.device)
        self.watch = collectives.check(config.timeout_seconds) if config.check_collectives else None
        source = world.agree(partial(begun_from, config))
        world.together(partial(check_share, source, world.rank, world.size))
        self.writer = Writer(config, world, self.scratch)
        self.set_weights(first_weights(config, source))

    @property
    def data_rank(self) -> int:
        """Index of the part of the global batch that this process reads."""
        return self.grid.place("data")

    @property
    def data_size(self) -> int:
        """Number of parts of the global batch."""
        return self.grid.size("data")

    @property
    def averaged(self) -> int:
        """The number of gradients of which DeepSpeed takes the mean."""
        return self.grid.size(*COPIES)

    @property
    def scratch(self) -> Path | None:
        """A folder for copies that must not fill the host's memory."""
        return next((part.scratch for part in self.parts if part.scratch), None)

    def lay_out(self) -> Any:
        """DeepSpeed's map of a pipeline's ranks; None without stages."""
        return None

    def build_model(self) -> nn.Module:
        """The network with the run's adapters, as this rank holds it."""
        shape = self.config.model
        with ExitStack() as stack:
            for part in self.parts:
                shape = part.shape(shape)
                stack.enter_context(part.inside())
            model = Molmo(shape, self.config.optim.z_loss, self.config.activation_checkpointing)
            lora.adapt(model, self.config.lora)
        return model

    def initialize(self) -> Any:
        """DeepSpeed's engine; through Accelerate, unless the optimizer must wait until DeepSpeed replaced layers."""
        if any(part.regroups for part in self.parts):
            return direct(self.model, self.build_optimizer, self.ds)
        return through_accelerate(self.model, self.build_optimizer(), self.ds, self.world)

    def build_optimizer(self, _: Any = None) -> torch.optim.Optimizer:
        """torch's optimizer over the parameters as they are now, in groups cut by the parts' marks."""

        def marks(name: str, parameter: nn.Parameter) -> dict[str, Any]:
            marked: dict[str, Any] = {}
            for part in self.parts:
                marked |= part.marks(name, parameter)
            return marked

        self.order.watch(self.model.named_parameters())  # DeepSpeed may have replaced some
        self.groups = optim.split_groups(
            optim.parameter_groups(self.model, self.config.optim), marks
        )
        groups = [dict(group) for group in self.groups]
        fused = self.world.device.type == "cuda" or None
        return optim.build_optimizer(groups, self.config.optim, fused)

    def local(self, batch: Batch) -> Batch:
        """This rank's share of a batch, on its device."""
        return self.share(batch).to(self.world.device)

    def share(self, batch: Batch) -> Batch:
        """This rank's share of a batch, on the CPU."""
        for part in self.parts:
            batch = part.local(batch)
        return batch

    def begin_step(self) -> None:
        """Count the step, give it its random numbers, and let check_collectives name it."""
        self.step += 1
        torch.manual_seed(dropout_seed(self.config.seed, self.step, self.grid.stream))
        if self.watch is not None:
            self.watch.where = f"in step {self.step}"

    def train_step(self, micro_batches: list[Batch]) -> dict[str, float]:
        """One update; see the protocol."""
        self.begin_step()
        self.engine.train()
        factor, counts = self.scale(micro_batches)
        micro_batches = fill(micro_batches, self.ds["gradient_accumulation_steps"])
        sums = []
        coming = self.feeder.send(self.share(micro_batches[0]))
        for following in [*micro_batches[1:], None]:
            self.engine.set_gradient_accumulation_boundary(following is None and not self.defers)
            losses = self.engine(self.feeder.arrived(coming).weighted(factor))
            loss = losses[0] + losses[1]
            if following is not None:  # before a backward pass that the host may wait for
                coming = self.feeder.send(self.share(following))
            self.order.compare_before(loss)
            self.engine.backward(loss, scale_wrt_gas=False)
            self.order.end_pass()
            sums.append(torch.stack([value.detach().double() for value in losses]))
        norms = self.clip_gradients()
        self.set_learning_rates()
        for part in self.parts:
            part.before_step(self.engine)
        self.writer.copied()
        self.engine.step()
        self.writer.poll()
        return self.report(sums, counts, norms)

    @torch.no_grad()
    def eval_loss(self, micro_batches: list[Batch]) -> dict[str, float]:
        """The global means of loss, z-loss and accuracy; see the protocol."""
        self.engine.eval()
        factor, counts = self.scale(micro_batches)
        sums = torch.zeros(3, dtype=torch.float64, device=self.world.device)
        for batch in fill(micro_batches, *self.world.largest(len(micro_batches))):
            sums += torch.stack(
                [loss.double() for loss in self.engine(self.local(batch).weighted(factor))]
            )
        return self.means(sums, counts, {})

    def scale(self, micro_batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """`loss_scale.scale` over the ranks that read different samples."""
        group = self.grid.group("data")
        return scale(micro_batches, self.averaged, group, self.world.device, self.config.model)

    def report(
        self, sums: list[Tensor], counts: Tensor, norms: dict[str, Tensor]
    ) -> dict[str, float]:
        """The result of an update: `means`, and of each component the rate and the norm before clipping.

        Args:
            sums: (ce, z-loss, accuracy), float64 [3], of each micro-batch whose loss this rank has.
        """
        total = sum(sums, torch.zeros(3, dtype=torch.float64, device=self.world.device))
        values = self.means(total, counts, norms, self.order.fingerprint())
        if not all(map(math.isfinite, values.values())):
            self.not_finite = [i for i, losses in enumerate(sums) if not losses.isfinite().all()]
        return values | optim.rates(self.config.optim, self.step, self.config.max_steps)

    def means(
        self, sums: Tensor, counts: Tensor, norms: dict[str, Tensor], order: Tensor | None = None
    ) -> dict[str, float]:
        """This rank's sums of (ce, z-loss, accuracy), float64 [3] -> the global means, what the step counted and norms.

        Here a step waits for the device, and nowhere else. `order` is this rank's fingerprint of the gradients' order.
        """
        summed = sums if order is None else torch.cat((sums, order))
        dist.all_reduce(summed, group=self.grid.group(*LOSSES))
        norm_values = [norm.view(1).to(sums) for norm in norms.values()]
        found = torch.cat((summed[:3] / self.averaged, counts, *norm_values, summed[3:])).tolist()
        names = ("ce_loss", "z_loss", "accuracy", *COUNTS, *(f"grad_norm/{part}" for part in norms))
        values = dict(zip(names, found))
        if order is not None:
            self.order.check(found[len(names) :])
        return {"loss": values["ce_loss"] + values["z_loss"], **values}

    def schedule(self, part: str) -> tuple:
        """Arguments of `optim.learning_rate` for the current step."""
        return self.config.optim, part, self.step, self.config.max_steps

    def set_learning_rates(self) -> None:
        """Give every optimizer group its component's rate."""
        for group in deepspeed_0_19.torch_optimizer(self.engine).param_groups:
            of_part = self.schedule(group["component"])
            group["lr"] = optim.learning_rate(*of_part, matrices="matrices" in group)

    def clip_gradients(self) -> dict[str, Tensor]:
        """Clip each component to its own norm over all ranks; the norms before."""
        every: dict[str, list[Tensor]] = {group["component"]: [] for group in self.groups}
        owned: dict[str, list[Tensor]] = {group["component"]: [] for group in self.groups}
        for found in fragments.gradients(self.engine, self.groups):
            every[found.component] += found.tensors
            if self.grid.first(found.copies):
                owned[found.component] += found.tensors
        limit = optim.norm_limit_used(self.config.optim, self.step)
        stepping = deepspeed_0_19.torch_optimizer(self.engine)
        scaling = isinstance(stepping, optimizers.ScalingAdamW)
        groups = stepping.param_groups if scaling else None
        return optim.clip(every, self.sum_over_ranks, limit, owned, groups)

    def sum_over_ranks(self, squares: Tensor) -> None:
        """Sum a tensor in place; offloaded gradients lie on the CPU, where NCCL sums nothing."""
        there = squares.to(self.world.device)
        dist.all_reduce(there)
        squares.copy_(there)

    def fragments(self, changed: bool = False) -> Iterator[fragments.Fragment]:
        """This rank's pieces of every parameter, under the names of one process; see fragments.fragments."""
        if changed:
            self.writer.copied()
        for piece in fragments.fragments(self.model, self.engine, changed):
            for part in self.parts:
                piece = part.rename(piece)
            yield replace(piece, owned=self.grid.first(piece.copies))

    @torch.no_grad()
    def set_weights(self, read: Callable[[str, tuple[int, ...], int, int], Tensor]) -> None:
        """Fill every parameter by `read(name, shape, first, last)`, as `first_weights`; see engine/filling.py."""
        filling = Filling(self.grid, self.world)
        for piece in self.fragments(changed=True):
            filling.fill(piece, "weight", partial(read, piece.name, piece.shape))
        filling.end()
        deepspeed_0_19.publish(self.engine)

    def save(self, folder: str, data_state: dict[int, dict]) -> None:
        """Write a checkpoint; see the protocol."""
        self.writer.save(folder, self.step, self.fragments(), data_state)

    def load(self, folder: str) -> dict[int, dict] | None:
        """Go on from the newest whole checkpoint; see the protocol."""
        candidates = restore.there(folder, self.world)
        for path in candidates:
            try:
                found = restore.opened(path, self.world)
                self._take(found)
            except Damaged as error:
                restore.passed_over(error, self.world)
                continue
            self.step = found.step
            return found.lanes
        if candidates:
            raise restore.none_whole(folder, len(candidates))
        return None

    def _take(self, found: Found) -> None:
        """Everything of a checkpoint but the step and the data's state."""
        fragments.create_state(self.engine, found.pieces.keys - {"weight"}, set(found.scalars))
        filling = Filling(self.grid, self.world)
        pieces = self.fragments(changed=True)
        restore.restore(found, pieces, set(self.shapes()), self.config.optim.name, filling)
        fragments.set_scalars(self.engine, found.scalars)
        deepspeed_0_19.publish(self.engine)

    def close(self) -> None:
        """Wait for the last checkpoint; see the protocol."""
        self.writer.finish()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter of the network as one process has it, on whichever rank, with its shape."""
        return {name: tuple(p.shape) for name, p in without_memory(self.config).named_parameters()}

    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter, whole, on the CPU, adapters merged; see the protocol."""
        pieces: dict[str, list[fragments.Fragment]] = {}
        for piece in self.fragments():
            if self.scratch:
                weight = piece.tensors["weight"]
                piece = replace(
                    piece, tensors={"weight": buffer(weight, self.scratch).copy_(weight)}
                )
            if piece.owned:
                pieces.setdefault(piece.name, []).append(piece)
        shapes = self.shapes()

        def whole(name: str) -> Tensor:
            summed = torch.zeros(shapes[name], dtype=torch.float32, device=self.world.device).view(
                -1
            )
            for piece in pieces.get(name, ()):
                for first, here, length in piece.runs():
                    summed[first : first + length] = piece.tensors["weight"][here : here + length]
            dist.all_reduce(summed)
            return summed.view(shapes[name]).cpu()

        names, read = lora.merged(shapes, whole, self.config.lora.alpha)
        for name in names:
            yield name, read(name)


def without_memory(config: RunConfig) -> Molmo:
    """The network as one process has it, adapters included, on the meta device."""
    with torch.device("meta"):
        model = Molmo(config.model)
        lora.adapt(model, config.lora)
    return model


def direct(
    model: nn.Module, build_optimizer: Callable[[Any], torch.optim.Optimizer], ds: dict[str, Any]
) -> Any:
    """deepspeed.initialize without Accelerate, through which no function that builds an optimizer goes."""
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=model, optimizer=build_optimizer, config=ds, dist_init_required=False
    )
    return engine


def dropout_seed(seed: int, step: int, stream: int) -> int:
    """The state of the random generator is a function of the step, so a resumed run needs none saved."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {stream}".encode()).digest()[:7], "big")
