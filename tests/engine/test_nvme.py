"""ZeRO-3 with weights and state on NVMe trains as one plain process does, with one sub-group in memory at a time."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder

from molmo_ds.architecture import (
    ConnectorConfig,
    ImageConfig,
    MolmoConfig,
    TextConfig,
    VisionConfig,
)
from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine, fragments
from molmo_ds.engine.launch import World
from molmo_ds.engine.launching.op_locks import drop_stale_locks
from molmo_ds.engine.parallel import nvme
from molmo_ds.model.molmo import component
from molmo_ds.testing import synthetic
from molmo_ds.testing.oracle import fresh_groups, plain
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.weights.first_weights import first_weights

ROOT = Path(__file__).parents[2]

# DeepSpeed swaps what has 1 MiB or more on a rank: of two ranks 2,048 x 256 fp32 numbers, and all of the tower together
MODEL = MolmoConfig(
    text=TextConfig(
        model_type="qwen2",
        vocab_size=2048,
        embedding_size=2048,
        additional_vocab_size=8,
        hidden_size=256,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=1e4,
        initializer_range=0.06,
    ),
    vision=VisionConfig(
        model_type="clip",
        image_size=28,
        patch_size=7,
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=2,
        feature_layers=(-2, -3),
        initializer_range=0.06,
    ),
    connector=ConnectorConfig(initializer_range=0.06),
    images=ImageConfig(crop_mode="resize", max_crops=1),
)
STEPS = 4


def sgd(strategy: str) -> RunConfig:
    """SGD, whose updates show an error of gradient scale, with clipping that acts on some components."""
    base = synthetic.config(model=MODEL, strategy=strategy, micro_batch=2, max_steps=STEPS)
    return replace(base, optim=replace(base.optim, max_grad_norm=7.0))


def adamw(strategy: str) -> RunConfig:
    """AdamW with three learning rates and clipping."""
    return synthetic.adamw(model=MODEL, strategy=strategy, micro_batch=2, max_steps=STEPS)


class Watched:
    """Counts how many elements of swapped fp32 state are in memory whenever a piece is handed out."""

    def __init__(self) -> None:
        self.most, self.real = 0, fragments.fragments

    def __call__(self, module, engine, changed=False):
        for piece in self.real(module, engine, changed):
            self.most = max(self.most, held(engine.optimizer))
            yield piece
        assert held(engine.optimizer) == 0, "a sub-group was left in memory"


def swapped(zero) -> list[int]:
    """The sub-groups of state on NVMe; none under another strategy."""
    groups = range(len(getattr(zero, "fp16_groups", ())))
    return [i for i in groups if zero._swappable_optimizer_subgroup(i)]


def held(zero) -> int:
    """Elements of their weights that are in memory."""
    return sum(zero.fp32_partitioned_groups_flat[i].numel() for i in swapped(zero))


def step(engine, run: RunConfig, number: int) -> dict[str, float]:
    return engine.train_step(
        synthetic.micro_batches(run, number, engine.data_rank, engine.data_size)
    )


def train(world: World, strategy: str, weights_alone: str, folder: str) -> dict:
    """SGD from the first weights, also with the state in memory; AdamW: save, resume, over ZeRO-1 and back."""
    out, watched = {}, Watched()
    with mock.patch.object(fragments, "fragments", watched):
        run = sgd(strategy)
        engine = build_engine(run, world)
        zero = engine.engine.optimizer
        sizes = [zero.fp16_partitioned_groups_flat_numel[i] for i in swapped(zero)]
        weights = {
            name: p.ds_tensor.final_location == "nvme"
            for name, p in engine.model.named_parameters()
        }
        out["sizes"], out["on NVMe"] = sizes, [name for name, there in weights.items() if there]
        out["parts"] = {
            engine.groups[zero.sub_group_to_group_id[i]]["component"] for i in swapped(zero)
        }
        log = []
        # what an evaluation reads ahead must not stay in the step's way
        for number in range(1, STEPS + 1):
            log.append(step(engine, run, number))
            engine.eval_loss(synthetic.micro_batches(run, 10, engine.data_rank, engine.data_size))
        out["sgd"] = log, dict(engine.full_state())
        fresh_groups()
        engine = build_engine(sgd(weights_alone), world)
        out["weights alone"] = [step(engine, run, number) for number in (1, 2)]
        run = adamw(strategy)

        def begin(strategy: str, at: int):
            fresh_groups()
            engine = build_engine(replace(run, strategy=strategy), world)
            assert (engine.load(folder) is None) == (at == 0) and engine.step == at
            return engine

        engine = begin(strategy, 0)
        log = [step(engine, run, 1)]
        engine.save(folder, {})
        first = step(engine, run, 2), dict(engine.full_state())
        engine = begin(strategy, 1)
        again = step(engine, run, 2), dict(engine.full_state())
        out["bitwise"] = first[0] == again[0] and all(
            torch.equal(w, again[1][n]) for n, w in first[1].items()
        )
        log.append(again[0])
        for number, at in ((3, "ds_configs/zero1.json"), (4, strategy)):
            engine.save(folder, {})
            engine.close()
            engine = begin(at, number - 1)
            log.append(step(engine, run, number))
        out["adamw"] = log, dict(engine.full_state())
        out["most"] = watched.most
    return out


def complaints(world: World, cases: dict[str, str]) -> dict[str, str]:
    """What building an engine under each strategy file raises on this rank."""
    out = {}
    for name, path in cases.items():
        broken = mock.patch.object(
            AsyncIOBuilder, "load", side_effect=RuntimeError("no compiler\nand more")
        )
        with (
            broken if name == "op" and world.rank == 1 else mock.patch.dict({}),
            pytest.raises(ValueError) as error,
        ):
            build_engine(sgd(path), world)
        out[name] = str(error.value)
    return out


def built() -> None:
    """Skip where the op cannot be made; elsewhere it must load, here, so that all forked ranks find it made."""
    if not (shutil.which("c++") and shutil.which("ninja") and AsyncIOBuilder().is_compatible()):
        pytest.skip("the op of DeepSpeed for NVMe needs libaio-dev, g++ and ninja-build")
    drop_stale_locks()
    assert nvme._build() is None


@pytest.fixture(scope="module")
def strategy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """zero3_nvme with small sub-groups, in a folder of its own."""
    built()
    folder = tmp_path_factory.mktemp("nvme")
    values = json.loads((ROOT / "ds_configs/zero3_nvme.json").read_text())
    zero = values["zero_optimization"]
    zero["sub_group_size"] = 300_000
    for key in ("offload_param", "offload_optimizer"):
        zero[key]["nvme_path"] = str(folder)
    (folder / "nvme.json").write_text(json.dumps(values))
    zero["offload_optimizer"] = {"device": "cpu"}
    (folder / "weights.json").write_text(json.dumps(values))
    return str(folder / "nvme.json")


@pytest.fixture(scope="module")
def run(strategy: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    alone = strategy.replace("nvme.json", "weights.json")
    ranks = run_ranks(train, 2, strategy, alone, str(tmp_path_factory.mktemp("saved")), timeout=240)
    for name in ("sgd", "adamw"):
        assert ranks[0][name][0] == ranks[1][name][0], "ranks log different numbers"
    return ranks[0]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_equals_one_plain_process(run: dict, name: str) -> None:
    config = {"sgd": sgd, "adamw": adamw}[name]("ds_configs/zero0.json")
    (log, weights), (losses, norms, expected) = run[name], plain(config)
    seen, limit = [norm for parts in norms for norm in parts.values()], config.optim.max_grad_norm
    assert limit < max(seen) and (name == "adamw" or min(seen) < limit), (
        "clipping must act, on some only"
    )
    for values, loss, parts in zip(log, losses, norms, strict=True):
        assert values["loss"] == pytest.approx(loss, abs=1e-5)
        for part, norm in parts.items():
            assert values[f"grad_norm/{part}"] == pytest.approx(
                norm, rel=1e-5 if name == "sgd" else 1e-4
            ), part
    read = first_weights(config)
    first = {n: read(n, tuple(w.shape), 0, w.numel()).view(w.shape) for n, w in weights.items()}
    for part in ("connector", "vision", "text"):
        names = [n for n in weights if component(n) == part and not n.endswith("k_proj.bias")]
        mine, theirs, start = (
            torch.cat([w[n].flatten().double() for n in names]) for w in (weights, expected, first)
        )
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm(), part
        # compared with how far the run moved them; Adam makes full steps of the rounding of small gradients
        assert (mine - theirs).norm() <= (1e-4 if name == "sgd" else 2e-3) * (
            theirs - start
        ).norm(), part


def test_weights_alone_on_nvme(run: dict) -> None:
    for values, expected in zip(run["weights alone"], run["sgd"][0]):
        assert values == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_goes_on_bitwise(run: dict) -> None:
    assert run["bitwise"]


def test_one_sub_group_is_in_memory(run: dict) -> None:
    assert run["parts"] == {"connector", "vision", "text"}, "no state of some component is on NVMe"
    assert {"embed.embedding", "head.lm_head.weight"} <= set(run["on NVMe"]), (
        "frozen and trained weights"
    )
    assert run["most"] == max(run["sizes"]) and sum(run["sizes"]) > 4 * run["most"]


def test_what_cannot_be_used_is_said_on_every_rank(strategy: str, tmp_path: Path) -> None:
    def written(name: str, place: str | None) -> str:
        values = json.loads(Path(strategy).read_text())
        values["zero_optimization"]["offload_optimizer"]["nvme_path"] = place
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
        return str(tmp_path / f"{name}.json")

    only_first = nvme.folder_name(sgd(strategy).out, 1)
    (tmp_path / only_first).write_text("a file, where rank 1 wants its folder")
    places = {"missing": str(tmp_path / "none"), "blocked": str(tmp_path), "unnamed": None}
    cases = {name: written(name, place) for name, place in places.items()} | {"op": strategy}
    mine, other = run_ranks(complaints, 2, cases)
    assert mine == other
    assert f"nvme_path={tmp_path}/none is not there; create that folder" in mine["missing"]
    assert f"nvme_path={tmp_path} cannot be written to directly (File exists)" in mine["blocked"]
    assert "has no nvme_path" in mine["unnamed"]
    assert "cannot be built (no compiler); install libaio-dev, g++" in mine["op"]
    for name, sentence in mine.items():
        assert sentence.startswith(cases[name]) and sentence.endswith(".") and "\n" not in sentence
