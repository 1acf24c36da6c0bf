"""Trains a row of one long video on two CPU ranks and compares the most memory with what plan_memory says.

    python tools/bench/bench_long_row.py [--tokens 36864] [--frames 384] [--strategy ds_configs/zero3_sp.json]

The network is tiny, frames and windows are as large as Molmo2's. Two steps; the second is measured.
"""

import argparse
import time

from molmo_ds.testing import memory


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a row of docs/evidence/memory.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=36_864)
    parser.add_argument("--frames", type=int, default=384)
    parser.add_argument("--strategy", default="ds_configs/zero3_sp.json")
    given = parser.parse_args(arguments)
    config = memory.video_run(given.tokens, given.frames, given.strategy)
    begin = time.perf_counter()
    ((planned, measured),) = memory.compared(config, memory.video_row, timeout=7200)
    seconds = time.perf_counter() - begin
    print("| tokens | frames | planned MB | measured MB | off by |")
    print(
        f"| {given.tokens} | {given.frames} | {planned / 1e6:.0f} | {measured / 1e6:.0f} |"
        f" {100 * (planned / measured - 1):+.1f} % |   two steps in {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
