"""The cases of test_twin.py: strategies to train under, and what else runs on the twin and on the CPU."""

import datetime
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from molmo_ds import presets
from molmo_ds.batch import Batch
from molmo_ds.config import LoraConfig, RunConfig
from molmo_ds.engine import build_engine
from molmo_ds.engine.checks.faults import GradientOrderError
from molmo_ds.engine.feeder import Feeder
from molmo_ds.engine.launch import World
from molmo_ds.engine.save.copies import Copies
from molmo_ds.engine.strategy import Execution
from molmo_ds.infer.generate import generate
from molmo_ds.infer.load import look_up, read
from molmo_ds.infer.options import Options
from molmo_ds.infer.replica import Replica
from molmo_ds.model.molmo import Molmo
from molmo_ds.ops import dispatch
from molmo_ds.ops.tree_attention import attention_plan, tree_attention
from molmo_ds.testing import synthetic
from molmo_ds.testing.oracle import family, fresh_groups
from molmo_ds.testing.serving import Server, chat, data_url, post

STEPS = 2
SILENCE = 2  # seconds after which a message is given up
LIMIT = 2.0  # the limit clips some components at some steps
ADAPTERS = LoraConfig(components=("vision", "text"), rank=3, alpha=24.0)
PRECISIONS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
RECOMPUTED = ("none", "full", "one_in_two", "vision", "offload")


def real(preset: str, **changes: Any) -> RunConfig:
    """A run of a preset's model."""
    return RunConfig(preset=preset, model=presets.get(preset), **changes)


SIZES = (4, 2304, 52, 2400)  # sequences, tokens, crops, tokens that reach the loss
STEPS_OF_REAL_SIZE = {  # arguments of counts.step; CI counts the first
    "1.5B, 4 x 2304, 52 crops": (real("qwen2_1b5"), *SIZES),
    "the same, ZeRO-3 on 8": (real("qwen2_1b5"), *SIZES, 8),
    "7B-D, 4 x 2304, 52 crops, ZeRO-3 on 8": (real("molmo_7b_d"), *SIZES, 8),
    "the same, recomputed": (real("molmo_7b_d", activation_checkpointing="full"), *SIZES, 8),
}


@dataclass(frozen=True)
class Case:
    """One strategy on the twin."""

    strategy: str
    ranks: int = 2
    decoder: str = "qwen2"
    micro_batch: int = 4
    recomputed: str = "none"
    adapters: bool = False
    precision: str = "fp32"

    @property
    def name(self) -> str:
        """A name for reports."""
        words = [self.strategy, f"{self.ranks} ranks", self.decoder, f"micro {self.micro_batch}"]
        words += [self.recomputed] if self.recomputed != "none" else []
        words += ["LoRA"] if self.adapters else []
        return " ".join([*words, self.precision])


ONE_OF_EACH = [
    Case("zero0"),
    Case("zero1", recomputed="vision", micro_batch=2),
    Case("zero2", recomputed="one_in_two"),
    Case("zero2", adapters=True),
    Case("zero3", recomputed="full", micro_batch=2),
    Case("zero3", recomputed="offload"),
    Case("zero3_hpz"),
    Case("zero3_offload"),
    Case("zero3_sp"),
    Case("zero3_tp"),
    Case("zero2_ep", decoder="olmoe"),
    Case("zero3_tp_offload"),
    Case("zero3_ep", decoder="olmoe", recomputed="full"),
    Case("zero3_ep_offload", decoder="olmoe"),
    Case("zero3_sp_ep", decoder="olmoe"),
    Case("pipe_zero1", adapters=True),
    Case("pipe_dualpipev", micro_batch=2),
    Case("pipe_zero1_ep", decoder="olmoe", ranks=4, micro_batch=2),
    Case("zero3_ep_tp", decoder="olmoe", ranks=4, micro_batch=2),
]


# pairs of kinds that CI sees apart, and on the CPU together
BY_HAND = ("zero3_sp_ep", "zero3_tp_offload", "zero3_ep_offload", "pipe_zero1_ep", "zero3_ep_tp")
IN_BF16 = (("zero1", "vision"), ("zero3", "full"), ("pipe_dualpipev", "none"))


def one_of_each() -> list[Case]:
    """ONE_OF_EACH in both precisions."""
    return [replace(case, precision=precision) for case in ONE_OF_EACH for precision in PRECISIONS]


def table(everything: bool) -> list[Case]:
    """One of each strategy but BY_HAND, and IN_BF16 also in bf16; or all in both precisions with every way to
    recompute, micro-batch and adapters."""
    cases = ONE_OF_EACH
    if not everything:
        cases = [case for case in cases if case.strategy not in BY_HAND]
        some = [case for case in cases if (case.strategy, case.recomputed) in IN_BF16]
        return [*cases, *(replace(case, precision="bf16") for case in some)]
    ways = [
        {"recomputed": recomputed, "micro_batch": micro, "adapters": adapters}
        for recomputed in RECOMPUTED
        for micro in (1, 2)
        for adapters in (False, True)
    ]
    cases = list(dict.fromkeys(replace(case, **way) for case in ONE_OF_EACH for way in ways))
    return [replace(case, precision=precision) for precision in PRECISIONS for case in cases]


def config_of(case: Case) -> RunConfig:
    """SGD, whose updates show an error of gradient scale that Adam would hide, with clipping."""
    base = synthetic.config(
        model=family(case.decoder),
        strategy=f"ds_configs/{case.strategy}.json",
        micro_batch=case.micro_batch,
        activation_checkpointing=case.recomputed,
        precision=case.precision,
        max_steps=STEPS,
        lora=ADAPTERS if case.adapters else LoraConfig(),
        check_collectives=True,
    )
    return replace(base, optim=replace(base.optim, max_grad_norm=LIMIT))


def batches_of(engine: Any, config: RunConfig, step: int) -> list[Batch]:
    """This rank's share of a step."""
    return synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)


def train(world: World, cases: list[Case], kernels: str | None) -> dict[Case, dict[str, Any]]:
    """Of each case the log, whole weights and held-out loss, and the waits of the last step by place.

    Args:
        kernels: the implementation of every op, None = the one a GPU would choose.
    """
    from deepspeed.moe import ep_kernels

    ep_kernels._GATHER_ROWS = 64  # for 4: Triton's interpreter takes its time for each program
    with dispatch.use(kernels):
        return {case: train_one(world, case) for case in cases}


def train_one(world: World, case: Case) -> dict[str, Any]:
    """One of them."""
    from molmo_ds.testing.twin import nccl, waits

    fresh_groups()
    nccl.timeouts.clear()
    config = config_of(case)
    engine = build_engine(config, world)
    log = [engine.train_step(batches_of(engine, config, step)) for step in range(1, STEPS)]
    last = batches_of(engine, config, STEPS)
    with waits.counted() as waited:
        log.append(engine.train_step(last))
    return {
        "log": log,
        "weights": dict(engine.full_state()),
        "held_out": engine.eval_loss(batches_of(engine, config, 10))["loss"],
        "waits": dict(waited),
        "micro_steps": engine.ds["gradient_accumulation_steps"],
        "device": str(next(engine.model.parameters()).device),
        "timeouts": {timeout.total_seconds() for _, timeout in nccl.timeouts},
    }


def most_waits(ranks: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """Of each place the most waits of a rank in its last step, the most first."""
    most: Counter[tuple[str, str]] = Counter()
    for rank in ranks:
        for place, count in rank["waits"].items():
            most[place] = max(most[place], count)
    return dict(most.most_common())


RESUMED = ("zero1", "zero3_offload")  # state on the device, and on the host
RESUMED_BY_HAND = (*RESUMED, "zero3")


def resume(
    world: World, folder: str, strategies: tuple[str, ...]
) -> dict[str, tuple[float, float]]:
    """The loss of a second step, and the same from a checkpoint of the first, by strategy in bf16 under AdamW."""
    out = {}
    for strategy in strategies:
        config = synthetic.adamw(
            strategy=f"ds_configs/{strategy}.json", micro_batch=4, precision="bf16"
        )
        losses = []
        with dispatch.use("torch"):
            for resumed in (False, True):
                fresh_groups()
                engine = build_engine(config, world)
                place = f"{folder}/{strategy}"
                if resumed:
                    engine.load(place)
                else:
                    engine.train_step(batches_of(engine, config, 1))
                    engine.save(place, {})
                losses.append(engine.train_step(batches_of(engine, config, 2))["loss"])
                engine.close()
        out[strategy] = tuple(losses)
    return out


LATE = [Case("zero3", recomputed="offload"), Case("zero3_offload")]


def late(world: World) -> tuple[list[list[dict[str, float]]], int]:
    """The logs of LATE where copies are late, and how many of them were overwritten."""
    from molmo_ds.testing.twin import torch_cuda

    with dispatch.use("torch"), torch_cuda.late_copies():
        logs = [train_one(world, case)["log"] for case in LATE]
    return logs, torch_cuda.overwritten()


def planted(world: World) -> dict[str, Any]:
    """What is seen of a missing wait, of memory that is overwritten too soon, and of two streams that race."""
    from torch.cuda import _sanitizer

    from molmo_ds.testing.twin import torch_cuda

    seen = {}
    host = torch.empty(4, pin_memory=True)
    with torch_cuda.late_copies():
        host.copy_(torch.ones(4, device="cuda"), non_blocking=True)
        seen["before a wait"] = host.tolist()
        torch.cuda.synchronize()
        seen["after it"] = host.tolist()
        host.to("cuda", non_blocking=True)
        host.zero_()
    seen["overwritten"] = torch_cuda.overwritten()
    _sanitizer.enable_cuda_sanitizer()
    for waits in (True, False):
        side = torch.cuda.Stream()
        x = torch.ones(4, device="cuda")
        try:
            if waits:
                side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                x.mul_(2)
            if waits:
                torch.cuda.current_stream().wait_stream(side)
            x.add_(1)
            seen["race", waits] = False
        except _sanitizer.CUDASanitizerErrors:
            seen["race", waits] = True
        feeder = Feeder(torch.device("cuda"))
        sent = feeder.send(synthetic.sequence(0, 4))
        try:
            batch = feeder.arrived(sent) if waits else sent.batch
            batch.loss_weights.mul_(2)
            seen["feed", waits] = False
        except _sanitizer.CUDASanitizerErrors:
            seen["feed", waits] = True
        seen["save", waits] = update_races(waits)
    with torch_cuda.late_copies():
        copies = copying(torch.ones(4, device="cuda"))
        seen["saved"] = copies.finish(["x"])["x"].tolist()
    seen["slices"] = slices_of_one()
    return seen


def slices_of_one() -> list[tuple[int, dict[str, list[float]]]]:
    """Two saves of slices of one tensor and of a tensor alone: the number of buffers, and the copies."""
    flat = torch.arange(10.0, device="cuda")
    alone = torch.full((2,), -1.0, device="cuda")
    copies = Copies(torch.device("cuda"), None)
    out = []
    for _ in range(2):
        copies.begin()
        copies.add("b", flat[6:9])
        copies.add("a", flat.view(-1).narrow(0, 1, 3))
        copies.add("alone", alone)
        copies.hand_over()
        found = copies.finish(["a", "alone", "b"])
        out.append((len(copies.buffers), {name: x.tolist() for name, x in found.items()}))
        flat += 1
    return out


def copying(x: Tensor) -> Copies:
    """A save of one tensor that has begun."""
    copies = Copies(torch.device("cuda"), None)
    copies.begin()
    copies.add("x", x)
    copies.hand_over()
    return copies


def update_races(waits: bool) -> bool:
    """Whether the copy of a save races with an update that comes after it, with its wait or without."""
    from torch.cuda import _sanitizer

    x = torch.ones(4, device="cuda")
    copies = copying(x)
    copies.on_host.set()  # nobody writes here
    try:
        if waits:
            copies.wait()
        x.mul_(2)
        return False
    except _sanitizer.CUDASanitizerErrors:
        return True


def crossed(world: World) -> dict[str, str]:
    """What becomes of two ranks that exchange a tensor in turn, and of two that both send first."""
    from molmo_ds.testing.twin import nccl

    def tell(name: str, error: RuntimeError, began: float) -> None:
        raise error

    give_up, nccl.give_up = nccl.give_up, tell
    other = 1 - world.rank
    seen = {}
    try:
        for order in ("in turn", "both send"):
            group = dist.new_group([0, 1], timeout=datetime.timedelta(seconds=SILENCE))
            x = torch.full((4,), float(world.rank), device=world.device)
            y = torch.empty_like(x)
            try:
                if order == "both send" or world.rank == 0:
                    dist.send(x, other, group)
                    dist.recv(y, other, group)
                else:
                    dist.recv(y, other, group)
                    dist.send(x, other, group)
                seen[order] = f"got {float(y[0]):g}"
            except RuntimeError:
                seen[order] = "hangs"
    finally:
        nccl.give_up = give_up
    return seen


class _WeightFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.T @ x, grad.sum(0)


def other_order(world: World) -> str:
    """What this rank is told when rank 1 has another graph, whose weights get their gradients first."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None or world.rank == 0:
            return F.linear(x, weight, bias)
        rows = x.reshape(-1, x.shape[-1])
        return _WeightFirst.apply(rows, weight, bias).view(*x.shape[:-1], -1)

    plain = dispatch._table["linear"]["torch"]
    dispatch._table["linear"]["torch"] = linear, dispatch.always
    fresh_groups()
    # in autocast the copies in bf16 give weights their gradients first on both ranks
    config = synthetic.config(strategy="ds_configs/zero2.json", micro_batch=4, precision="fp32")
    try:
        with dispatch.use("torch"):
            engine = build_engine(config, world)
            engine.train_step(batches_of(engine, config, 1))
    except GradientOrderError as error:
        return str(error)
    finally:
        dispatch._table["linear"]["torch"] = plain
    return ""


def network(device: str, decoder: str, kernels: str | None) -> tuple[float, dict[str, Tensor]]:
    """The loss of two batches, with and without pictures, and every gradient, on the CPU."""
    model = Molmo(family(decoder), z_loss=1e-4).train()
    model.reset_parameters(0)
    model.to(device)
    total = 0.0
    with dispatch.use(kernels):
        for lane in (4, 1):
            ce, z, _ = model(synthetic.sequence(0, lane).to(device))
            (ce + z).backward()
            total += float((ce + z).detach())
    named = model.named_parameters()
    return total, {name: p.grad.cpu() for name, p in named if p.grad is not None}


def cascade(device: str, kernels: str, dtype: torch.dtype) -> list[Tensor]:
    """Attention over two trees and padding, and its gradients, on the CPU: 4 heads, 2 of keys, 16 channels."""
    runs = [
        (1, 0, 9),
        (1, 1, 5),
        (1, 2, 4),
        (2, 0, 3),
        (2, 1, 6),
        (0, 0, 5),
    ]  # document, branch, tokens
    ids = torch.cat([torch.tensor([[d, b]]).repeat(n, 1) for d, b, n in runs])
    document, branch = ids.T.to(device, torch.int32)[:, None]
    draw = torch.Generator().manual_seed(0)
    made = [torch.randn(1, heads, len(ids), 16, generator=draw) for heads in (4, 2, 2, 4)]
    # rounded alike on both sides
    *leaves, grad = (x.bfloat16().to(device, dtype) for x in made)
    for leaf in leaves:
        leaf.requires_grad_()
    with dispatch.use(kernels):
        plan = attention_plan(document, branch, dtype)
        out = tree_attention(*leaves, plan)
    real = (document > 0)[:, None, :, None]
    found = [out * real, *torch.autograd.grad(out, leaves, grad * real)]
    return [x.detach().cpu().double() for x in found]


def answers(folder: str, device: str) -> list[str]:
    """Texts of a weights folder: generated, and of three questions at once to a server with slots."""
    source, config = look_up(folder, None)
    answerer = read(source, config, torch.device(device), "fp32")
    builder = answerer.builder
    eos = builder.tokenizer.eos
    prompt = answerer.batch([builder.prompt([], "How many?")])
    made = generate(answerer.model, prompt, eos, Options(max_new_tokens=8))
    texts = made.texts(builder.tokenizer.decode)
    server = Server(Path(folder), seconds=60.0)
    # CUDA's graphs are recorded by CUDA alone
    replica = Replica.of(answerer.model, eos, execution=Execution(graphs=False, buckets=True))
    asked = [
        chat("How many?", max_tokens=8),
        chat("How many birds?", data_url(), max_tokens=8),
        chat("How many?", data_url(70, 30), max_tokens=8, temperature=1.0, seed=4, n=2),
    ]
    with server.front_in_a_thread(), server.engine_in_a_thread(replica):
        for body in asked:
            _, answer = post(server.url, body)
            texts += [choice["message"]["content"] for choice in answer["choices"]]
    return texts


def apart(world: World, folder: str) -> Any:
    """What needs no second rank: rank 0 runs the network with every kernel, rank 1 answers."""
    device = f"cuda:{world.rank}"
    if world.rank:
        with dispatch.use("torch"):
            return answers(folder, device)
    decoders = {"qwen2": ("torch", None), "olmoe": (None,)}
    made: dict[Any, Any] = {
        (decoder, kernels): network(device, decoder, kernels)
        for decoder, each in decoders.items()
        for kernels in each
    }
    # flash attention takes half precision alone
    return made | {"cascade": cascade(device, "cuda", torch.bfloat16)}
