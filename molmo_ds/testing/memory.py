"""The most bytes that the tensors of a rank hold in a step on the CPU, and those that plan_memory predicts."""

import gc
import itertools
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from molmo_ds.architecture import MolmoConfig, TextConfig, VideoConfig
from molmo_ds.batch import Batch, learnt_rows_of
from molmo_ds.config import DataConfig, RunConfig
from molmo_ds.data.sample.pictures.image_ids import image_ids
from molmo_ds.data.sample.pictures.layout import FRAME_END, FRAME_START, IM_PATCH
from molmo_ds.data.sample.pictures.windows import pool, single
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.engine.plan import plan_memory
from molmo_ds.engine.strategy import accumulation, read_strategy
from molmo_ds.ops import cpu_library
from molmo_ds.presets.molmo2 import molmo2_8b
from molmo_ds.testing import synthetic
from molmo_ds.testing.ranks import run_ranks

STAMP = 4  # tokens of a frame's time
GRID = 27  # patches along a frame, as released


def peak(world: World, config: RunConfig, make: Callable[[RunConfig], Batch]) -> int:
    """The most bytes of tensors that a rank held at once in the second step.

    What exists before the step is counted tensor by tensor, what the step adds by the profiler. It does not see what a
    thread of gloo is the last to let go, so each wait gives that thread the time to let go first. The plan is a GPU's,
    so PyTorch's ops run: the CPU's own kernels keep a seventh less for the backward pass.
    """
    cpu_library.load = lambda: None
    wait = torch.distributed.Work.wait
    torch.distributed.Work.wait = lambda work, *limit: (wait(work, *limit), time.sleep(1e-3))[0]
    steps = accumulation(config, read_strategy(config.strategy).data_parallel_size(2))
    micro_batches = [make(config) for _ in range(steps)]
    engine = build_engine(config, world)
    engine.train_step(micro_batches)
    tensors = [
        x for x in gc.get_objects() if isinstance(x, torch.Tensor) and x.device.type == "cpu"
    ]
    before = sum(
        {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}.values()
    )
    del tensors
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as trace:
        engine.train_step(micro_batches)
    events = trace.profiler.kineto_results.events()
    changes = [
        change
        for _, change in sorted(
            (e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"
        )
    ]
    return before + max(itertools.accumulate(changes))


def compared(
    config: RunConfig, make: Callable[[RunConfig], Batch], timeout: float = 300
) -> list[tuple[float, float]]:
    """(planned, measured) bytes of each pipeline stage, or of the mean of two ranks; a host counts as the device.

    The mean, because an untrained router sends one rank more tokens than the even share that is planned for. `make`
    gives a micro-batch.
    """
    plans = plan_memory.plan(config, read_strategy(config.strategy), 2, on_gpu=False)
    peaks = run_ranks(peak, 2, config, make, timeout=timeout)
    measured = peaks if len(plans) > 1 else [sum(peaks) / 2]
    return list(zip([made.peak + made.host for made in plans], measured))


def video_run(tokens: int, frames: int, strategy: str) -> RunConfig:
    """A run of a tiny Molmo2 over rows of one video, with frames and windows as large as the released ones."""
    base = molmo2_8b()
    text = TextConfig(
        model_type="qwen3",
        vocab_size=128,
        embedding_size=128,
        additional_vocab_size=128,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        attention_bias=False,
        qk_norm=True,
        qk_norm_per_head=True,
        image_attention="image_tokens",
        max_position_embeddings=tokens,
    )
    vision = replace(
        base.vision,
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        feature_layers=(-1, -2),
    )
    model: MolmoConfig = replace(
        base, text=text, vision=vision, video=VideoConfig(max_frames=frames, pooling_size=3)
    )
    data = DataConfig(sequence_length=tokens, crops_per_sequence=frames)
    return synthetic.adamw(model=model, strategy=strategy, data=data, global_batch=1)


def video_row(config: RunConfig) -> Batch:
    """One video that fills the row: frames of 9 x 9 windows with their times, then text, of which all is learnt."""
    tokens = config.data.sequence_length
    frames = config.data.crops_per_sequence
    words = config.model.text.vocab_size
    cells = pool(single(GRID), config.model.video.pooling_size).reshape(-1, 9)
    frame = [3] * STAMP + [words + FRAME_START] + [words + IM_PATCH] * len(cells)
    frame += [words + FRAME_END]
    shown = torch.tensor(frame * frames)
    if len(shown) > tokens:
        raise ValueError(f"{frames} frames take {len(shown)} tokens, more than {tokens}.")
    ids = torch.cat([shown, torch.arange(tokens - len(shown)) % words])
    one = torch.ones(1, tokens, dtype=torch.int32)
    learnt = (ids < words).float()[None]
    windows = np.concatenate([cells + number * GRID**2 for number in range(frames)])
    side = config.model.vision.image_size
    return Batch(
        input_ids=ids[None],
        labels=ids.clamp(max=words - 1)[None],
        loss_weights=learnt,
        position_ids=torch.arange(tokens)[None],
        document_ids=one,
        branch_ids=one * 0,
        image_ids=image_ids(ids, words, config.model.text.image_attention)[None],
        images=torch.zeros(frames, side, side, 3, dtype=torch.uint8),
        image_masks=torch.ones(frames, GRID**2),
        windows=torch.from_numpy(windows),
        image_positions=(ids == words + IM_PATCH).nonzero()[:, 0],
        learnt_rows=learnt_rows_of(learnt),
    )
