"""ZeRO 0 to 3 through Accelerate's DeepSpeed integration."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from molmo_ds.batch import Batch
from molmo_ds.config import MolmoConfig, RunConfig
from molmo_ds.engine import collectives, deepspeed_0_19, ds_config, fragments, nvme, optim
from molmo_ds.engine.compiled import compile_layers
from molmo_ds.engine.gradient_order import GradientOrder
from molmo_ds.engine.launch import World
from molmo_ds.engine.loss_scale import COUNTS, fill, scale
from molmo_ds.engine.save import restore
from molmo_ds.engine.save.writer import Writer
from molmo_ds.model import lora
from molmo_ds.model.molmo import Molmo
from molmo_ds.weights import checkpoint


class ZeroEngine:
    """Data parallel: every rank holds the network (its shards under ZeRO-3) and reads its own samples."""

    def __init__(self, config: RunConfig, world: World, strategy: ds_config.Strategy) -> None:
        self.config, self.world, self.strategy, self.step = config, world, strategy, 0
        self.data_rank, self.data_size, self.data_group = world.rank, world.size, None
        self.replicas, self.loss_group = world.size, None  # ranks over which gradients and losses are averaged
        self.grid = None  # DeepSpeed's map of the ranks, where it has one
        self.keeper = world.rank == 0  # saves what several ranks hold alike
        self.stream = world.rank  # whose random numbers drop out
        self.arrange()
        self.order = GradientOrder(self.loss_group, world.device, *self.part_of_network())
        self.not_finite: list[int] = []  # the micro-batches of this rank's last step whose loss is not finite
        on_gpu = world.device.type == "cuda"
        self.ds = ds_config.resolve(strategy, config, world.size, on_gpu)
        ds_config.check_with_deepspeed(strategy, self.ds, self.grid)
        self.scratch = nvme.prepare(self.ds, strategy.path, config.out, world)  # a folder on NVMe, where that is used
        self.model = self.build_model()
        if config.compile:
            compile_layers(self.model)
        frozen = optim.frozen_names(self.model, config.optim, config.lora)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.groups = optim.parameter_groups(self.model, config.optim)
        if not self.groups:
            raise ValueError("Every component is frozen; set optim.connector.freeze=false or another to train.")
        self.order.watch(self.model.named_parameters())
        optimizer = optim.build_optimizer([dict(group) for group in self.groups], config.optim)
        self.engine = self.prepare(optimizer)
        self.watch = collectives.check(config.timeout_seconds) if config.check_collectives else None
        self.set_weights(checkpoint.first_weights(config))
        self.writer = Writer(config, world, self.keeper, self.scratch)

    def build_model(self) -> nn.Module:
        """The network on this rank's device; under ZeRO-3 each parameter is split as soon as it exists."""
        return self.network(self.config.model)

    def network(self, model: MolmoConfig, group: dist.ProcessGroup | None = None) -> Molmo:
        """A network of that shape with the run's adapters; ZeRO-3 splits it over `group`, None = over all ranks."""
        import deepspeed

        place: Any = self.world.device
        if self.strategy.stage == 3:
            place = deepspeed.zero.Init(config_dict_or_path=self.ds, data_parallel_group=group)
        with place:
            network = Molmo(model, self.config.optim.z_loss, self.config.activation_checkpointing)
            lora.adapt(network, self.config.lora)
        return network

    def prepare(self, optimizer: torch.optim.Optimizer) -> Any:
        """The DeepSpeed engine around `self.model`."""
        return prepare(self.model, optimizer, self.ds, self.world)

    def arrange(self) -> None:
        """Set the groups of ranks; every rank is a replica of its own here."""

    def part_of_network(self) -> tuple[int, int]:
        """(which, of how many): the part of the network that this rank trains; the whole here."""
        return 0, 1

    def local(self, batch: Batch) -> Batch:
        """This rank's part of a batch that its group shares: all of it here."""
        return batch.to(self.world.device)

    def begin_step(self) -> None:
        """Count the step, give it its random numbers, and let check_collectives name it."""
        self.step += 1
        torch.manual_seed(dropout_seed(self.config.seed, self.step, self.stream))
        if self.watch is not None:
            self.watch.where = f"in step {self.step}"

    def train_step(self, micro_batches: list[Batch]) -> dict[str, float]:
        """One update; see the protocol. Every rank runs every module in every micro-step."""
        self.begin_step()
        self.engine.train()
        factor, counts = self.scale(micro_batches)
        micro_batches = fill(micro_batches, self.ds["gradient_accumulation_steps"])
        sums = []
        for i, batch in enumerate(micro_batches):
            self.engine.set_gradient_accumulation_boundary(i == len(micro_batches) - 1 and not self.scratch)
            losses = self.engine(self.local(batch).weighted(factor))
            self.order.compare_before(losses[0] + losses[1])
            self.engine.backward(losses[0] + losses[1], scale_wrt_gas=False)
            self.order.end_pass()
            sums.append(torch.stack([loss.detach().double() for loss in losses]))
        norms = self.clip_gradients()
        self.set_learning_rates()
        if self.scratch:
            deepspeed_0_19.hand_over(self.engine)
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
            sums += torch.stack([loss.double() for loss in self.engine(self.local(batch).weighted(factor))])
        return self.means(sums, counts, {})

    def scale(self, micro_batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """`weights.scale` over the ranks whose losses are averaged."""
        return scale(micro_batches, self.replicas, self.data_group, self.world.device, self.config.model)

    def report(self, sums: list[Tensor], counts: Tensor, norms: dict[str, Tensor]) -> dict[str, float]:
        """What an update returns: `means`, and of each component the rate and the norm before clipping.

        Args:
            sums: (ce, z-loss, accuracy), float64 [3], of each micro-batch whose loss this rank has.
        """
        total = sum(sums, torch.zeros(3, dtype=torch.float64, device=self.world.device))
        values = self.means(total, counts, norms, self.order.fingerprint())
        if not all(map(math.isfinite, values.values())):
            self.not_finite = [i for i, losses in enumerate(sums) if not losses.isfinite().all()]
        rates = {f"lr/{part}": optim.learning_rate(*self.schedule(part)) for part in optim.COMPONENTS}
        return values | rates

    def means(
        self, sums: Tensor, counts: Tensor, norms: dict[str, Tensor], order: Tensor | None = None
    ) -> dict[str, float]:
        """This rank's sums of (ce, z-loss, accuracy), float64 [3] -> the global means, what the step counted and norms.

        Here a step waits for the device, and nowhere else. `order` is this rank's fingerprint of the gradients' order.
        """
        summed = sums if order is None else torch.cat((sums, order))
        dist.all_reduce(summed, group=self.loss_group)
        norm_values = [norm.view(1).to(sums) for norm in norms.values()]
        found = torch.cat((summed[:3] / self.replicas, counts, *norm_values, summed[3:])).tolist()
        names = ("ce_loss", "z_loss", "accuracy", *COUNTS, *(f"grad_norm/{part}" for part in norms))
        values = dict(zip(names, found))
        if order is not None:
            self.order.check(found[len(names) :])
        return {"loss": values["ce_loss"] + values["z_loss"], **values}

    def schedule(self, part: str) -> tuple:
        """What `optim.learning_rate` takes for the current step."""
        return self.config.optim, part, self.step, self.config.max_steps

    def set_learning_rates(self) -> None:
        """Give every optimizer group its component's rate."""
        for group in deepspeed_0_19.torch_optimizer(self.engine).param_groups:
            group["lr"] = optim.learning_rate(*self.schedule(group["component"]))

    def clip_gradients(self) -> dict[str, Tensor]:
        """Clip each component to its own norm over all ranks; the norms before."""
        pieces, split = fragments.gradients(self.engine, self.groups)
        limit = optim.norm_limit_used(self.config.optim, self.step)
        return optim.clip(pieces, self.sum_over_ranks if split else lambda squares: None, limit)

    def sum_over_ranks(self, squares: Tensor) -> None:
        """Sum a tensor in place; offloaded gradients lie on the CPU, where NCCL sums nothing."""
        there = squares.to(self.world.device)
        dist.all_reduce(there)
        squares.copy_(there)

    def fragments(self, changed: bool = False) -> Iterator[fragments.Fragment]:
        """What this rank holds of every parameter; see fragments.fragments."""
        return fragments.fragments(self.model, self.engine, changed)

    @torch.no_grad()
    def set_weights(self, whole: Callable[[str, tuple[int, ...]], Tensor]) -> None:
        """Fill every parameter from `whole(name, shape)`; each rank keeps its piece."""
        for piece in self.fragments(changed=True):
            value = whole(piece.name, piece.shape).reshape(-1)
            for first, here, length in piece.runs():
                piece.tensors["weight"][here : here + length] = value[first : first + length]
        deepspeed_0_19.publish(self.engine)

    def save(self, folder: str, data_state: dict[int, dict]) -> None:
        """Write a checkpoint; see the protocol."""
        self.writer.save(folder, self.step, self.fragments(), data_state)

    def load(self, folder: str) -> dict[int, dict] | None:
        """Go on from the newest whole checkpoint; see the protocol."""
        found = restore.newest(folder, self.world)
        if found is None:
            return None
        fragments.create_state(self.engine, *restore.state_keys(found))
        restore.restore(found, self.fragments(changed=True), set(self.shapes()), self.config.optim.name)
        fragments.set_scalars(self.engine, found.scalars)
        deepspeed_0_19.publish(self.engine)
        self.step = found.step
        return found.data_state

    def close(self) -> None:
        """Wait for the last checkpoint; see the protocol."""
        self.writer.finish()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter of the model, on whichever rank, with its whole shape."""
        return {name: deepspeed_0_19.whole_shape(p) for name, p in self.model.named_parameters()}

    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter, whole, on the CPU, adapters merged; see the protocol."""
        pieces: dict[str, list[fragments.Fragment]] = {}
        for piece in self.fragments():
            if self.scratch:
                weight = piece.tensors["weight"]
                piece = replace(piece, tensors={"weight": nvme.buffer(weight, self.scratch).copy_(weight)})
            pieces.setdefault(piece.name, []).append(piece)
        shapes = self.shapes()

        def whole(name: str) -> Tensor:
            buffer = torch.zeros(shapes[name], dtype=torch.float32, device=self.world.device).view(-1)
            for piece in pieces.get(name, ()):
                if not piece.whole or self.keeper:
                    for first, here, length in piece.runs():
                        buffer[first : first + length] = piece.tensors["weight"][here : here + length]
            dist.all_reduce(buffer)
            return buffer.view(shapes[name]).cpu()

        names, read = lora.merged(shapes, whole, self.config.lora.alpha)
        for name in names:
            yield name, read(name)


def prepare(model: nn.Module, optimizer: torch.optim.Optimizer, ds: dict[str, Any], world: World) -> Any:
    """deepspeed.initialize by way of Accelerate; the DeepSpeed engine."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

    AcceleratorState._reset_state()  # a second engine in one process (tests) has settings of its own
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    accelerator = Accelerator(
        gradient_accumulation_steps=ds["gradient_accumulation_steps"],
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=ds),
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend)],
    )
    assert accelerator.num_processes == world.size, "accelerate does not see the process group"
    engine, _ = accelerator.prepare(model, optimizer)
    return engine


def dropout_seed(seed: int, step: int, stream: int) -> int:
    """The state of the random generator is a function of the step, so a resumed run needs none saved."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {stream}".encode()).digest()[:7], "big")
