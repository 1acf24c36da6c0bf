"""Plans of attention and rotary tables are built once per micro-batch and stage, not per layer."""

from dataclasses import replace

import pytest

from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.model import decoder
from molmo_ds.model.decoder import DecoderLayer
from molmo_ds.testing import synthetic
from molmo_ds.testing.ranks import run_ranks

CASES = [
    ("zero0", "none"),
    ("zero3", "none"),
    ("zero3", "full"),
    ("zero3_sp", "full"),
    ("pipe_zero1", "full"),
]
MODEL = replace(synthetic.MODEL, text=replace(synthetic.MODEL.text, num_hidden_layers=3))


def counts(world: World, cases: list[tuple[str, str]]) -> dict:
    """(micro-batches, decoder layers here, builds of an update, builds of an evaluation) of each case."""
    built: list[str] = []
    for name in ("attention_plan", "rope_table"):
        made = getattr(decoder, name)
        setattr(decoder, name, lambda *x, name=name, made=made: (built.append(name), made(*x))[1])
    out = {}
    for strategy, checkpointing in cases:
        config = synthetic.config(
            model=MODEL,
            strategy=f"ds_configs/{strategy}.json",
            micro_batch=2,
            activation_checkpointing=checkpointing,
        )
        engine = build_engine(config, world)
        layers = sum(isinstance(m, DecoderLayer) for m in engine.model.modules())
        builds = []
        for run in (engine.train_step, engine.eval_loss):
            batches = synthetic.micro_batches(config, 1, engine.data_rank, engine.data_size)
            built.clear()
            run(batches)
            builds.append({name: built.count(name) for name in ("attention_plan", "rope_table")})
        out[strategy, checkpointing] = len(batches), layers, *builds
    return out


@pytest.fixture(scope="module")
def runs() -> list[dict]:
    return run_ranks(counts, 2, CASES, timeout=180)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_built_once(runs: list[dict], case: tuple[str, str]) -> None:
    ranks = [run[case] for run in runs]
    assert max(layers for _, layers, *_ in ranks) >= 2, "one layer shares nothing"
    for micro_batches, layers, *builds in ranks:
        assert micro_batches == {"pipe_zero1": 4, "zero3_sp": 4}.get(case[0], 2)
        expected = micro_batches if layers else 0
        assert builds == [{"attention_plan": expected, "rope_table": expected}] * 2
