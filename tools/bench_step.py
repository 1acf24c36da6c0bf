"""Times training steps on this machine: forward, backward, clipping per component and AdamW, in tokens per second.

    python tools/bench_step.py --preset reference_cpu      beside the reference implementation's figure
    python tools/bench_step.py --tree                      message trees + packing against padded single annotations

On the CPU it counts CPU seconds (time.process_time), which other jobs on the machine hardly change; on a GPU wall
seconds. Each figure is printed with the kernels as they are chosen and with MOLMO_DS_OPS=torch.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

from molmo_ds import presets
from molmo_ds.batch import Batch, Sample
from molmo_ds.config import ComponentConfig, MolmoConfig, OptimConfig
from molmo_ds.data.packing import choose, collate
from molmo_ds.engine.optim import build_optimizer, clip, frozen_names, norm_limit_used, parameter_groups
from molmo_ds.model.molmo import Molmo
from molmo_ds.ops import dispatch

REFERENCE = 908  # tokens per CPU-second: allenai/molmo 793fa38 at the reference_cpu step, one AMD EPYC thread, fp32
OPTIM = OptimConfig(connector=ComponentConfig(2e-4), vision=ComponentConfig(6e-6), text=ComponentConfig(2e-5))


def picture(config: MolmoConfig, crops: int, source: np.random.RandomState) -> tuple[torch.Tensor, torch.Tensor]:
    """Random uint8 crops [n, H, W, 3], and the token index [n, Q] of every pooled patch (BOS, then all of them)."""
    side = config.vision.image_size
    pooled = (-(-side // config.vision.patch_size // config.connector.pooling_size)) ** 2
    images = torch.from_numpy(source.randint(0, 256, (crops, side, side, 3), dtype=np.uint8))
    return images, torch.arange(crops * pooled).view(crops, pooled) + 1


def sample(config: MolmoConfig, crops: int, branches: list[tuple[int, int]], source: np.random.RandomState) -> Sample:
    """A picture with branches of (question, answer) tokens; one branch alone is a plain example."""
    images, positions = picture(config, crops, source)
    prefix, words = positions.numel() + 1, config.text.vocab_size
    lengths = [prefix, *(q + a for q, a in branches)]
    ids = torch.from_numpy(source.randint(0, words, sum(lengths)))
    ids[positions] = words + 2
    weights = [torch.zeros(prefix)]
    for question, answer in branches:
        weights.append(torch.cat((torch.zeros(question - 1), torch.ones(answer), torch.zeros(1))))
    places = [torch.arange(n) + (prefix if i else 0) for i, n in enumerate(lengths)]
    numbers = torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(torch.tensor(lengths))
    masks = torch.ones(crops, (config.vision.image_size // config.vision.patch_size) ** 2)
    labels = torch.from_numpy(source.randint(0, words, len(ids)))
    return Sample(ids, labels, torch.cat(weights), torch.cat(places), numbers, images, masks, positions)


def reference_batches(config: MolmoConfig, rows: int, tokens: int, crops: int) -> list[Batch]:
    """One step: sequences without padding whose last 600 (of 1024) tokens are learnt."""
    source = np.random.RandomState(0)
    prefix = picture(config, crops, source)[1].numel() + 1
    learnt = min(tokens * 600 // 1024, tokens - prefix - 1)
    built = [[sample(config, crops, [(tokens - prefix - learnt, learnt)], source)] for _ in range(rows)]
    return [collate(built, tokens)]


def tree_batches(config: MolmoConfig, crops: int, pictures: int, annotations: int) -> tuple[list[Batch], list[Batch]]:
    """One step of the same pictures and annotations: trees packed into 2048 tokens, and padded rows of one branch."""
    lengths = np.random.RandomState(0)  # short questions; an answer is a word, some points or a sentence
    branches = [[(lengths.randint(6, 16), lengths.randint(2, 40)) for _ in range(annotations)] for _ in range(pictures)]
    trees = [sample(config, crops, each, np.random.RandomState(i)) for i, each in enumerate(branches)]
    single = [sample(config, crops, [b], np.random.RandomState(i)) for i, each in enumerate(branches) for b in each]
    packed, left = [], trees
    while left:
        taken = choose([[len(s.input_ids), len(s.images)] for s in left], 2048, 1000)
        packed.append(collate([[left[i] for i in taken]], 2048))
        left = [s for i, s in enumerate(left) if i not in taken]
    longest = max(len(s.input_ids) for s in single)
    padded = [collate([[s] for s in single[i : i + 4]], longest) for i in range(0, len(single), 4)]
    return packed, padded


def seconds_per_step(config: MolmoConfig, micro_batches: list[Batch], steps: int, device: torch.device) -> float:
    """CPU seconds (GPU: wall seconds) of a step, after one that warms up."""
    model = Molmo(config).to(device)
    model.reset_parameters(0)
    for name in frozen_names(model, OPTIM):
        model.get_parameter(name).requires_grad_(False)
    groups = parameter_groups(model, OPTIM)
    optimizer = build_optimizer(groups, OPTIM)
    total = sum(float(b.loss_weights.sum()) for b in micro_batches)
    cuda = device.type == "cuda"
    clock: Callable[[], float] = time.perf_counter if cuda else time.process_time
    for step in tqdm(range(steps + 1), desc="steps", leave=False):
        if step == 1:
            start = clock()
        for batch in micro_batches:
            fresh = Batch(*(t.clone() for t in batch.to(device).tensors()))  # nothing kept from the step before
            with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
                ce_sum, z_sum, _ = model(fresh.replace(loss_weights=fresh.loss_weights / total))
            (ce_sum + z_sum).backward()
        gradients: dict[str, list[torch.Tensor]] = {}
        for group in groups:
            gradients.setdefault(group["component"], []).extend(p.grad for p in group["params"])
        clip(gradients, lambda squares: None, norm_limit_used(OPTIM, step))
        optimizer.step()
        optimizer.zero_grad()
        if cuda:
            torch.cuda.synchronize()
    return (clock() - start) / steps


def main() -> None:
    """Parse arguments, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="reference_cpu", help="a preset of molmo_ds.presets")
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1024, help="per sequence")
    parser.add_argument("--crops", type=int, default=2, help="per picture")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tree", action="store_true", help="time message trees against padded single annotations")
    parser.add_argument("--annotations", type=int, default=4, help="per picture, with --tree")
    parser.add_argument("--pictures", type=int, default=8, help="per step, with --tree")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config, device = presets.get(args.preset), torch.device(args.device)
    parameters = sum(p.numel() for p in Molmo(config).parameters())
    clock = "second" if device.type == "cuda" else "CPU-second"
    print(f"{args.preset}: {parameters:,} parameters, torch {torch.__version__}, {args.threads} thread(s), {device}")
    for ops in (None, "torch"):
        name = f"ops {ops or 'default':7}"
        with dispatch.use(ops):
            if args.tree:
                both = tree_batches(config, args.crops, args.pictures, args.annotations)
                rates = [args.pictures / seconds_per_step(config, side, args.steps, device) for side in both]
                tokens = [sum(b.input_ids.numel() for b in side) for side in both]
                print(
                    f"{name} trees + packing {rates[0]:.2f} pictures per {clock} ({tokens[0]} tokens a step), padded "
                    f"single annotations {rates[1]:.2f} ({tokens[1]}): {rates[0] / rates[1]:.2f} times"
                )
                continue
            batches = reference_batches(config, args.sequences, args.tokens, args.crops)
            seconds = seconds_per_step(config, batches, args.steps, device)
            rate = args.sequences * args.tokens / seconds
            beside = (
                f", {rate / REFERENCE:.2f} times the reference's {REFERENCE}" if args.preset == "reference_cpu" else ""
            )
            print(f"{name} {seconds:.3f} {clock}s a step, {rate:.0f} tokens per {clock}{beside}")


if __name__ == "__main__":
    main()
