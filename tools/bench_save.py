"""How long a checkpoint holds the training up, written at once and behind the training's back.

python tools/bench_save.py --width 1024 --layers 8 --folder /data/tmp
"""

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

from molmo_ds import presets
from molmo_ds.config import ComponentConfig, RunConfig
from molmo_ds.engine import build_engine, launch


def main() -> None:
    """Print parameters, bytes written, seconds of both ways and their ratio as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--strategy", default="ds_configs/zero3.json")
    parser.add_argument("--folder", type=Path, default=Path("bench_save"), help="on the disk to measure; emptied")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    tiny = presets.tiny()
    text = replace(tiny.text, hidden_size=options.width, intermediate_size=3 * options.width)
    config = RunConfig(
        model=replace(tiny, text=replace(text, num_hidden_layers=options.layers)),
        strategy=options.strategy,
        global_batch=launch.start().size,
        keep_checkpoints=1,
    )
    config = replace(config, optim=replace(config.optim, text=ComponentConfig(1e-4)))
    engine = build_engine(config)
    # the state that a first step would make
    from molmo_ds.engine import fragments

    fragments.create_state(engine.engine, {"exp_avg", "exp_avg_sq"}, {"step"})
    result = {"parameters": sum(piece.size for piece in engine.fragments())}
    for name, behind in (("synchronous", False), ("asynchronous", True)):
        engine.writer.config = replace(config, async_save=behind)
        stalls, wholes = [], []
        for _ in range(options.repeat):
            shutil.rmtree(options.folder, ignore_errors=True)
            began = time.perf_counter()
            engine.save(str(options.folder), {})
            stalls.append(engine.writer.stall)
            engine.close()
            wholes.append(time.perf_counter() - began)
        result[f"{name}_stall_seconds"] = round(min(stalls), 3)
        result[f"{name}_whole_seconds"] = round(min(wholes), 3)
    result["bytes"] = sum(f.stat().st_size for f in options.folder.rglob("*") if f.is_file())
    result["stall_ratio"] = round(result["asynchronous_stall_seconds"] / result["synchronous_stall_seconds"], 3)
    shutil.rmtree(options.folder)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
