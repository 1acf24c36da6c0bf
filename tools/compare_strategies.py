"""Trains tiny models under every strategy and in one plain process, and tables how far losses and weights are apart.

    python tools/compare_strategies.py --ranks 2 [--strategies zero3 zero3_sp] [--families qwen2] [--write "2 ranks"]

Every global batch holds unequal token counts and loss weights, packed documents, message trees, and for some ranks no
picture. Two rows tell what the others mean: how far the plain process is from itself when its first weights are
rounded otherwise (what must be allowed), and when its gradients are 1 % too large (what must be seen). --write replaces
the table of that name in docs/evidence/equality.md. Takes the batches of tests/.
"""

import argparse
import copy
import math
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from deepspeed.utils import groups
from torch import Tensor
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import synthetic  # noqa: E402
from ranks import run_ranks  # noqa: E402

from molmo_ds.batch import Batch  # noqa: E402
from molmo_ds.config import MolmoConfig, RunConfig  # noqa: E402
from molmo_ds.engine import build_engine, optim, pipeline  # noqa: E402, F401 (before the fork)
from molmo_ds.engine.launch import World  # noqa: E402
from molmo_ds.engine.strategy import read_strategy  # noqa: E402
from molmo_ds.model import lora  # noqa: E402
from molmo_ds.model.molmo import Molmo, component  # noqa: E402

LANES = 16  # sequences of a global batch
SGD_RATE = 0.25  # of synthetic.config's rates, whose 20 steps without clipping amplify rounding tenfold
SHOWN = {"sgd": "SGD", "adamw": "AdamW"}
BF16 = [(strategy, times) for strategy in ("zero1", "zero2", "zero3") for times in (1, 2, 4, 8, 16)]
ALLOWED = 1e-5  # loss difference under SGD in fp32
Cell = tuple[str, str, str, int, str]  # family, strategy, optimizer, accumulation, precision
Run = tuple[list[float], dict[str, Tensor]]
GROUPS = {name: value for name, value in vars(groups).items() if name.isupper() or name == "mpu"}


def family(name: str) -> MolmoConfig:
    """The micro model with the decoder of a family."""
    model = synthetic.MODEL
    plain = replace(model.text, attention_bias=False)
    olmo = replace(plain, qk_norm=True, num_key_value_heads=4)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    texts = {
        "qwen2": model.text,
        "llama": replace(plain, model_type="llama", rope_scaling={**scaling, "original_max_position_embeddings": 16}),
        "olmo": replace(plain, model_type="olmo", norm_type="layer", clip_qkv=4.0),
        "olmo2": replace(olmo, model_type="olmo2", norm_after=True),
        "olmoe": replace(olmo, model_type="olmoe", num_experts=4, num_experts_per_tok=2, intermediate_size=24),
    }
    return replace(model, text=texts[name])


def run_config(cell: Cell, data_size: int, steps: int) -> RunConfig:
    """The run of a cell on `data_size` replicas; no clipping under SGD, clipping that acts under AdamW."""
    name, strategy, optimizer, accumulation, precision = cell
    base = synthetic.config() if optimizer == "sgd" else synthetic.adamw()
    settings = base.optim
    if optimizer == "sgd":
        parts = {part: getattr(settings, part) for part in optim.COMPONENTS}
        slower = {part: replace(value, lr=SGD_RATE * value.lr) for part, value in parts.items()}
        settings = replace(settings, **slower)
    return replace(
        base,
        optim=settings,
        model=family(name),
        strategy=f"ds_configs/{strategy}.json",
        precision=precision,
        global_batch=LANES,
        micro_batch=max(1, LANES // data_size // accumulation),
        max_steps=steps,
    )


def fresh_groups() -> None:
    """Forget the groups of ranks that DeepSpeed keeps in globals, so that one process can hold the next strategy."""
    vars(groups).update({name: copy.copy(value) for name, value in GROUPS.items()})


def plain(
    config: RunConfig,
    rounding: float = 0.0,
    too_large: float = 0.0,
    lanes: Callable[[int], list[Batch]] | None = None,
) -> tuple[list[float], list[dict[str, float]], dict[str, Tensor]]:
    """The measure: torch alone in one process, one sequence after the other; losses, gradient norms, weights.

    Args:
        rounding: relative error of the first weights.
        too_large: relative error of the gradients.
        lanes: the sequences of a step, each a batch of its own; None = those of synthetic.py.
    """
    model = Molmo(config.model, config.optim.z_loss)
    lora.adapt(model, config.lora)
    model.reset_parameters(config.seed)
    noise = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        still = getattr(config.optim, component(name)).freeze or name == "embed.embedding"
        parameter.requires_grad_(not still and not lora.is_base(name, config.lora))
        if rounding:
            parameter.data *= 1 + rounding * torch.randn(parameter.shape, generator=noise)
    stepper = optim.build_optimizer(optim.parameter_groups(model, config.optim), config.optim)
    losses, norms = [], []
    for step in range(1, config.max_steps + 1):
        if lanes is None:
            sequences = [synthetic.sequence(step, lane) for lane in range(config.global_batch)]
        else:
            sequences = lanes(step)
        total = sum(float(batch.loss_weights.double().sum()) for batch in sequences) or math.inf
        losses.append(0.0)
        norms.append({})
        for batch in sequences:
            ce, z, _ = model(batch)
            ((ce + z) * ((1 + too_large) / total)).backward()
            losses[-1] += float((ce + z).detach()) / total
        for part in optim.COMPONENTS:
            grads = [p.grad for n, p in model.named_parameters() if component(n) == part and p.grad is not None]
            norms[-1][part] = norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads))
            if grads and config.optim.max_grad_norm:
                torch._foreach_mul_(grads, min(1.0, config.optim.max_grad_norm / (norm + 1e-6)))
        for group in stepper.param_groups:
            group["lr"] = optim.learning_rate(config.optim, group["component"], step, config.max_steps)
        stepper.step()
        stepper.zero_grad()
    return losses, norms, {name: parameter.detach() for name, parameter in model.named_parameters()}


def under_strategies(world: World, cells: list[Cell], steps: int) -> dict[Cell, Run | str]:
    """Losses and weights of each cell through the engine, or the sentence with which it is refused."""
    out: dict[Cell, Run | str] = {}
    for cell in tqdm(cells, disable=world.rank > 0, desc=f"{world.size} ranks"):
        fresh_groups()
        try:
            strategy = read_strategy(f"ds_configs/{cell[1]}.json")
            config = run_config(cell, strategy.data_parallel_size(world.size), steps)
            engine = build_engine(config, world)
        except ValueError as error:
            out[cell] = str(error)
            continue
        losses = []
        for step in range(1, steps + 1):
            batches = synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)
            losses.append(engine.train_step(batches)["loss"])
        out[cell] = losses, dict(engine.full_state())
    return out


def difference(ours: Run, reference: Run) -> tuple[float, float]:
    """Largest |loss difference| and largest relative difference of a weight tensor.

    A tensor's difference is divided by its norm, but at least by that of a tensor of its size drawn with deviation
    0.02 (biases start at zero). Biases of keys are left out: softmax does not see them, so their exact gradient is zero
    and Adam turns its rounding into steps of full length.
    """
    weights = 0.0
    for name, right in reference[1].items():
        if not name.endswith("k_proj.bias"):
            norm = max(float(right.double().norm()), 0.02 * math.sqrt(right.numel()))
            weights = max(weights, float((ours[1][name].double() - right.double()).norm()) / norm)
    return max(abs(a - b) for a, b in zip(ours[0], reference[0], strict=True)), weights


def table(results: dict[Cell, Run | str], noise: dict[Cell, Run | str], steps: int) -> list[str]:
    """Markdown rows, the worst of the accumulations in each; the rows that explain the others come first.

    Args:
        noise: bf16 cells of one process, empty in fp32.
    """
    optimizers = [name for name in SHOWN if any(cell[2] == name for cell in results)]
    heads = [f"{SHOWN[name]} loss | {SHOWN[name]} weights" for name in optimizers]
    lines = [f"| strategy | decoder | {' | '.join(heads)} |", "|---|---|" + "---|---|" * len(optimizers)]
    references: dict[tuple, Run] = {}
    allowed: dict[tuple, float] = {}
    for name in dict.fromkeys(cell[0] for cell in results):
        first, second = [], []
        for optimizer in optimizers:
            config = run_config((name, "zero0", optimizer, 1, "fp32"), 1, steps)
            references[name, optimizer] = reference = plain(config)[::2]
            if noise:
                pairs = [difference(run, reference) for c, run in noise.items() if (c[0], c[2]) == (name, optimizer)]
                spreads = [(statistics.mean(values), statistics.stdev(values)) for values in zip(*pairs)]
                allowed[name, optimizer] = spreads[0][0] + 3 * spreads[0][1]
                first += [f"{mean:.1e} +- {deviation:.1e}" for mean, deviation in spreads]
                continue
            allowed[name, optimizer] = ALLOWED
            first += [f"{x:.1e}" for x in difference(plain(config, rounding=1e-7)[::2], reference)]
            second += [f"{x:.1e}" for x in difference(plain(config, too_large=0.01)[::2], reference)]
        what = f"{len(BF16)} runs in bf16" if noise else "first weights rounded otherwise"
        lines.append(f"| one process, {what} | {name} | {' | '.join(first)} |")
        if second:
            lines.append(f"| one process, gradients 1 % too large | {name} | {' | '.join(second)} |")
    worst, over, refused = 0.0, [], {}
    for strategy, name in dict.fromkeys((cell[1], cell[0]) for cell in results):
        here = {cell: run for cell, run in results.items() if (cell[1], cell[0]) == (strategy, name)}
        legal = {cell: run for cell, run in here.items() if not isinstance(run, str)}
        if not legal:
            refused.setdefault((strategy, next(iter(here.values()))), []).append(name)
            continue
        row, fewer = [], sorted({cell[3] for cell in legal}) if len(legal) < len(here) else []
        for optimizer in optimizers:
            pairs = [
                difference(run, references[name, optimizer]) for cell, run in legal.items() if cell[2] == optimizer
            ]
            row += [f"{max(values):.1e}" for values in zip(*pairs)]
            if optimizer == "sgd":
                loss = max(loss for loss, _ in pairs)
                worst = max(worst, loss / allowed[name, optimizer])
                over += [f"{strategy} {name}"] * (loss > allowed[name, optimizer])
        lines.append(f"| {strategy}{''.join(f', {n} micro-steps' for n in fewer)} | {name} | {' | '.join(row)} |")
    lines += [f"| {row[0]} | {', '.join(names)} | refused: {row[1]} |" for row, names in refused.items()]
    if "sgd" in optimizers:
        limit = "what one process in bf16 has at three deviations" if noise else f"{ALLOWED:.0e}"
        above = ", ".join(over) or "none"
        lines += ["", f"Loss differences under SGD: at most {worst:.2f} times {limit}; above it: {above}."]
    return lines


def cpu() -> str:
    """The processor's name."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{len(names)} cores of {names[0]}" if names else platform.machine()


def write(table: str, lines: list[str]) -> None:
    """Put the lines between the markers of a table in docs/evidence. ValueError if no page there has such markers."""
    begin = f"<!-- {table} -->"
    end = f"<!-- end of {table} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    for page in sorted((ROOT / "docs/evidence").glob("*.md")):
        text, found = pattern.subn(lambda _: "\n".join([begin, *lines, end]), page.read_text())
        if found:
            page.write_text(text)
            return
    raise ValueError(f"No page of docs/evidence has '{begin}' followed by '{end}'; write both where the table belongs.")


def main() -> None:
    """Run the cells, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    everything = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
    parser.add_argument("--strategies", nargs="+", default=everything, choices=everything)
    parser.add_argument("--families", nargs="+", default=["qwen2", "llama", "olmo", "olmo2", "olmoe"])
    parser.add_argument("--optimizers", nargs="+", default=["sgd", "adamw"])
    parser.add_argument("--accumulations", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--write", metavar="NAME", help="replace the table `equality at NAME` of docs/evidence")
    arguments = parser.parse_args()
    cells = [
        (name, strategy, optimizer, accumulation, arguments.precision)
        for strategy in arguments.strategies
        for name in arguments.families
        for optimizer in arguments.optimizers
        for accumulation in arguments.accumulations
    ]
    began = time.strftime("%Y-%m-%d")
    results: dict[Cell, Run | str] = {}
    for strategy in arguments.strategies:
        here = [cell for cell in cells if cell[1] == strategy]
        results |= run_ranks(under_strategies, arguments.ranks, here, arguments.steps, timeout=3600)[0]
    noise: dict[Cell, Run | str] = {}
    if arguments.precision == "bf16":
        names = [(name, optimizer) for name in arguments.families for optimizer in arguments.optimizers]
        here = [(name, strategy, optimizer, times, "bf16") for name, optimizer in names for strategy, times in BF16]
        noise = run_ranks(under_strategies, 1, here, arguments.steps, timeout=3600)[0]
    command = f"python tools/compare_strategies.py {shlex.join(sys.argv[1:])}"
    machine = f"{cpu()}, {torch.get_num_threads()} thread per rank, torch {torch.__version__}"
    lines = [f"`{command}`, {began}, {machine}:", "", *table(results, noise, arguments.steps)]
    print("\n".join(lines))
    if arguments.write:
        write(f"equality at {arguments.write}", lines)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"compare_strategies: {error}")
