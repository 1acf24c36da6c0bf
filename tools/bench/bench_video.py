"""Measures how videos become sequences: decoding, with torchcodec's, and how full two budgets are packed.

    decode [--folder DIR]      CPU milliseconds of ours and of torchcodec's exact mode, and whether all frames are equal
    packing [--sizes FILE]     share of tokens and crops that packing = pack and knapsack fill, and how long one waits

Without a folder H.264 videos are made. torchcodec is optional and needs a system FFmpeg, so it is best installed into
an environment of its own. FILE is a JSON list of [tokens, crops].
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from molmo_ds.architecture import VideoConfig
from molmo_ds.data.order.packing import Budget
from molmo_ds.data.sample.times import frame_times
from molmo_ds.data.video import frames_at, video_size

MADE = (("20s", 600, 250), ("90s", 2700, 250), ("10s-keys-every-30", 300, 30))  # frames, GOP
ROUNDS = 3


def main(arguments: list[str] | None = None) -> None:
    """Print one line a measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["decode", "packing"])
    parser.add_argument("--folder", type=Path, help="videos to decode")
    parser.add_argument("--sizes", type=Path, help="JSON list of [tokens, crops]")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--crops", type=int, default=128)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.what == "packing":
        packing(args)
    elif args.folder:
        decode(args.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            make_videos(Path(folder))
            decode(Path(folder))


def decode(folder: Path) -> None:
    """Every video of a folder at 8 frames and at 2 a second, at most 128."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        duration = video_size(data).duration
        for config in (VideoConfig(max_frames=8), VideoConfig(max_frames=128, max_fps=2.0)):
            times = frame_times(config, duration)
            frames, ours = cpu(lambda: frames_at(data, times))  # noqa: B023
            line = f"{path.name}: {len(times)} frames, ours {ours:.0f} ms"
            other = theirs(data, times)
            if other is not None:
                seen, spent = other
                same = all(map(np.array_equal, frames, seen))
                line += f", torchcodec {spent:.0f} ms, speed {spent / ours:.2f}, equal {same}"
            print(line)


def theirs(data: bytes, times: np.ndarray) -> tuple[np.ndarray, float] | None:
    """(frames, CPU milliseconds) of torchcodec; None where it cannot be imported."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError):
        return None

    def run() -> np.ndarray:
        decoder = VideoDecoder(data, seek_mode="exact", num_ffmpeg_threads=1)
        begin = decoder.metadata.begin_stream_seconds_from_content
        end = decoder.metadata.end_stream_seconds_from_content
        inside = [max(begin + 1e-6, min(end - 1e-6, float(one) + begin)) for one in times]
        return decoder.get_frames_played_at(inside).data.numpy().transpose(0, 2, 3, 1)

    return cpu(run)


def cpu(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """(result, CPU milliseconds of the best of ROUNDS)."""
    spent = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        result = run()
        spent.append((time.process_time() - begin) * 1e3)
    return result, min(spent)


def make_videos(folder: Path) -> None:
    """H.264, 640 x 360, 30 frames a second, with moving patterns."""
    import av

    rng = np.random.RandomState(0)
    pattern = rng.randint(0, 256, (45, 80, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    for name, frames, keys in MADE:
        out = io.BytesIO()
        with av.open(out, "w", format="mp4") as file:
            stream = file.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
            stream.codec_context.gop_size = keys
            for i in range(frames):
                picture = np.roll(pattern, 2 * i, 1)
                picture[3 * i % 320 :][:40, 5 * i % 600 :][:, :40] = (7 * i % 256, 0, 255)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode())
        (folder / f"{name}.mp4").write_bytes(out.getvalue())


def packing(args: argparse.Namespace) -> None:
    """One line for each way and pool."""
    sizes = json.loads(args.sizes.read_text()) if args.sizes else made_up(3000)
    for weight, pool in ((None, 48), (None, 128), (30.0, 48), (30.0, 128)):
        budget = Budget(args.tokens, args.crops, pool, weight)
        begin = time.process_time()
        packs, longest = packed(sizes, budget)
        spent = (time.process_time() - begin) / len(packs) * 1e3
        tokens = np.mean([sum(sizes[one][0] for one in pack) for pack in packs]) / args.tokens
        crops = np.mean([sum(sizes[one][1] for one in pack) for pack in packs]) / args.crops
        name = "pack" if weight is None else "knapsack"
        print(
            f"{name}, pool {pool}: tokens {tokens:.4f}, crops {crops:.4f} of {len(packs)} sequences; a sample waits for"
            f" {longest} sequences at most; {spent:.1f} ms a sequence"
        )


def packed(sizes: list[list[int]], budget: Budget) -> tuple[list[list[int]], int]:
    """The samples of each sequence while the pool is full, and the most sequences that one waited for."""
    packs: list[list[int]] = []
    pool: list[tuple[int, int]] = []  # sample, sequence at which it came
    longest = 0
    for number in range(len(sizes)):
        pool.append((number, len(packs)))
        if len(pool) == budget.pool_size:
            chosen = set(budget.choose([sizes[one] for one, _ in pool], len(packs)))
            longest = max(longest, *(len(packs) - pool[place][1] for place in chosen))
            packs.append([pool[place][0] for place in sorted(chosen)])
            pool = [entry for place, entry in enumerate(pool) if place not in chosen]
    return packs, longest


def made_up(count: int) -> list[list[int]]:
    """Half videos at 2 frames a second, pictures of up to 8 crops, and a tenth text."""
    rng = np.random.RandomState(0)
    out = []
    for kind in rng.random_sample(count):
        text = int(rng.randint(30, 900))
        if kind < 0.5:
            frames = min(128, int(2 * rng.lognormal(3.2, 1.0)) + 2)
            out.append([frames * 89 + text, frames])
        elif kind < 0.9:
            crops = int(rng.randint(2, 10))
            out.append([crops * 125 + 160 + text, crops])
        else:
            out.append([int(rng.randint(500, 6000)), 0])
    return out


if __name__ == "__main__":
    main()
