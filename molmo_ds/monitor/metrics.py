"""Writes the numbers of a run every log_interval steps, on rank 0: a console line, JSON lines, TensorBoard and W&B."""

import hashlib
import importlib.util
import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm

from molmo_ds import settings
from molmo_ds.config import COMPONENTS, RunConfig
from molmo_ds.engine.launch import World
from molmo_ds.engine.loss_scale import COUNTS
from molmo_ds.files import is_remote
from molmo_ds.model.flops import PARTS, Learning, flops_of_step
from molmo_ds.stores.mirror import working_folder

PEAK_FLOPS = {  # dense bf16 of one device, from NVIDIA's and AMD's data sheets; the longest name that fits counts
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "B300": 2250e12,
    "GB200": 2500e12,
    "GB300": 2500e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "4090": 165e12,
    "3090": 71e12,
    "MI250": 362e12,
    "MI300": 1307e12,
    "MI325": 1307e12,
}
# DeepSpeed's monitor, by samples
SAMPLES = {"loss": "Train/Samples/train_loss", "lr/text": "Train/Samples/lr"}
BAR_IN_A_FILE = 30  # seconds between two states of the progress bar where no terminal shows it
FLUSH = 10  # seconds until TensorBoard's files hold what they were given
EVALUATION = "eval/"  # before the names of an evaluator's numbers
# accelerate's examples, by steps
STEPS = {"loss": "train_loss", "lr/text": "learning_rate", "grad_norm": "grad_norm"}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations per second that a device's maker states; None where unknown, as for every CPU."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """PEAK_FLOPS of a device by the name that its driver gives it: "NVIDIA GB200" is no B200, "NVIDIA L40S" no L40."""
    found = [key for key in PEAK_FLOPS if key in name]
    return PEAK_FLOPS[max(found, key=len)] if found else None


def learning_of(config: RunConfig) -> Learning:
    """What of a run's network learns."""
    learns = [part for part in PARTS if not getattr(config.optim, part).freeze]
    adapted = tuple(part for part in learns if part in config.lora.components)
    return Learning(tuple(part for part in learns if part not in adapted), adapted)


def process_age() -> float:
    """Seconds since this process started."""
    return time.time() - psutil.Process().create_time()


class Metrics:
    """Collects each step's numbers; on rank 0 also writes them. Values of a line are those of its step, rates are means
    since the line before."""

    def __init__(self, config: RunConfig, world: World, first_step: int) -> None:
        self.config = config
        self.world = world
        self.out = working_folder(config.out, config.scratch)
        self.since = time.perf_counter()
        self.began = self.since - process_age()  # so that imports and building lower the goodput
        self.sums: dict[str, float] = {}
        self.trained = 0.0
        self.writer = None
        self.wandb = None
        if config.wandb and importlib.util.find_spec("wandb") is None:
            raise ValueError(
                f"wandb={config.wandb} needs the package: pip install wandb, or leave wandb unset."
            )
        self.bar = tqdm(
            total=config.max_steps,
            initial=first_step,
            desc="train",
            unit="step",
            disable=world.rank != 0,
            mininterval=0.5 if sys.stderr.isatty() else BAR_IN_A_FILE,
            dynamic_ncols=True,
        )
        if world.rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            forget_after(self.out / "log.jsonl", first_step)
            self.log = open(self.out / "log.jsonl", "a", buffering=1)  # noqa: SIM115 (closed by close)
            self.writer = SummaryWriter(
                str(self.out / "tensorboard"), purge_step=first_step + 1, flush_secs=FLUSH
            )
            # apart, because what a resumed run makes again is counted in samples here
            first_sample = first_step * config.global_batch + 1
            self.by_samples = SummaryWriter(
                str(self.out / "tensorboard" / "samples"),
                purge_step=first_sample,
                flush_secs=FLUSH,
            )
            if config.wandb:
                import wandb

                name = config.out if is_remote(config.out) else str(self.out.resolve())
                run = {
                    "name": Path(config.out).name,
                    "id": hashlib.sha256(name.encode()).hexdigest()[:16],
                    "resume": "allow",
                    "entity": config.wandb_entity,
                    "group": config.wandb_group,
                    "tags": list(config.wandb_tags),
                }
                self.wandb = wandb.init(
                    project=config.wandb, dir=str(self.out), config=settings.to_dict(config), **run
                )

    def beat(self) -> None:
        """Write the heartbeat of a step that has ended, for tools/launch.py."""
        if self.world.rank == 0:
            (self.out / "heartbeat").touch()

    def step(
        self,
        step: int,
        values: dict[str, float],
        waited: float,
        stepped: float,
        saving: float = 0.0,
        evaluating: float = 0.0,
    ) -> None:
        """Take in one step: `waited` seconds for data, `stepped` for the update, `saving` for a checkpoint.

        `evaluating` seconds count in no rate but the goodput.
        """
        self.beat()
        self.since += evaluating
        self.trained += stepped
        counts = {"steps": 1.0, "waited": waited, "stepped": stepped, "saving": saving}
        counts |= {name: values[name] for name in COUNTS if name != "weight"}
        self.sums = {key: self.sums.get(key, 0.0) + value for key, value in counts.items()}
        self.bar.update()
        due = step % self.config.log_interval == 0 or step == 1 or step in self.config.profile_steps
        if due or any(key.startswith(EVALUATION) for key in values):
            if self.world.rank == 0:
                self._write(step, values | self._rates())
            self.sums = {}
            self.since = time.perf_counter()

    def close(self) -> None:
        """Flush and close the files."""
        self.bar.close()
        if self.writer is not None:
            self.writer.close()
            self.by_samples.close()
            self.log.close()
        if self.wandb is not None:
            self.wandb.finish()

    def _rates(self) -> dict[str, float]:
        now = time.perf_counter()
        sums = self.sums
        wall = now - self.since
        out = {
            "tokens_per_second": sums["tokens"] / wall,
            "images_per_second": sums["images"] / wall,
            "crops_per_second": sums["crops"] / wall,
            "documents_per_second": sums["documents"] / wall,
            "step_seconds": wall / sums["steps"],
            "data_wait_share": sums["waited"] / wall,
            "save_share": sums["saving"] / wall,
            "packing_fill": sums["tokens"] / sums["positions"],
            "learnt_share": sums["learnt_tokens"] / max(sums["tokens"], 1.0),
            "goodput": self.trained / (now - self.began),
            "memory_bytes": float(self._memory()),
        }
        if peak := peak_flops(self.world.device):
            flops = flops_of_step(
                self.config.model,
                tokens=sums["tokens"],
                learnt=sums["learnt_tokens"],
                pairs=sums["visible_pairs"],
                crops=sums["crops"],
                windows=sums["windows"],
                pooled=sums["pooled_patches"],
                learning=learning_of(self.config),
            )
            out["mfu"] = flops / wall / (peak * self.world.size)
        return out

    def _memory(self) -> int:
        if self.world.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.world.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _write(self, step: int, values: dict[str, Any]) -> None:
        parts = [values[f"grad_norm/{part}"] for part in COMPONENTS]
        values = {**values, "grad_norm": math.hypot(*parts)}
        # JSON knows no NaN
        written = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self.log.write(
            json.dumps({"step": step, "time": time.time(), **written}, allow_nan=False) + "\n"
        )
        tagged = {
            key if key.startswith(EVALUATION) else f"train/{key}": value
            for key, value in values.items()
        }
        for tag, value in tagged.items():
            self.writer.add_scalar(tag, value, step)
        for key, tag in SAMPLES.items():
            self.by_samples.add_scalar(tag, values[key], step * self.config.global_batch)
        for key, tag in STEPS.items():
            self.writer.add_scalar(tag, values[key], step)
        if self.wandb is not None:
            self.wandb.log(tagged, step=step)
        norms = " ".join(f"{norm:.2f}" for norm in parts)
        self.bar.write(
            f"step {step} loss {values['loss']:.4f} accuracy {values['accuracy']:.3f} norms {norms} "
            f"lr {values['lr/text']:.2e} {values['tokens_per_second']:.0f} tokens/s fill {values['packing_fill']:.2f} "
            f"wait {values['data_wait_share']:.0%}"
        )


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will make again, and a line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    new = path.with_suffix(".new")
    new.write_text("".join(kept))
    new.replace(path)
