"""Replicas over ranks: every layout gives the tokens of one process, greedy and sampled, trees and single questions."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import answer_oracle
import pytest
import torch
import torch.distributed as dist
from recorder import Recorder
from torch import Tensor
from torch._dynamo.utils import counters

from molmo_ds.architecture import MolmoConfig
from molmo_ds.engine import compiled
from molmo_ds.engine.answering.layout import refuse
from molmo_ds.engine.answering.share import Share
from molmo_ds.engine.launch import World
from molmo_ds.engine.strategy import Execution, Limits, parse, read_strategy
from molmo_ds.infer.answers import answer
from molmo_ds.infer.options import Options
from molmo_ds.infer.question import Answer, Question
from molmo_ds.infer.replica import Replica
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing import synthetic
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.weights.slices import Cut

ROOT = Path(__file__).parents[2]
EOS = 7
FAMILIES = {
    # words that two ranks cannot share equally
    "qwen2": {"attention_bias": True, "embedding_size": 95},
    "llama": {"model_type": "llama", "attention_bias": False, "tie_word_embeddings": True},
    "olmo": {"model_type": "olmo", "attention_bias": False, "norm_type": "layer", "clip_qkv": 0.5},
    "olmo2": {"model_type": "olmo2", "attention_bias": False, "qk_norm": True, "norm_after": True},
    "olmoe": {
        "model_type": "olmoe", "attention_bias": False, "qk_norm": True, "num_experts": 4, "num_experts_per_tok": 2,
        "intermediate_size": 16,
    },
}  # fmt: skip
SOME = ("qwen2", "olmoe")
NARROW = tuple(FAMILIES)
# for four shares
FAMILIES["wide qwen2"] = FAMILIES["qwen2"] | {"num_attention_heads": 8, "num_key_value_heads": 4}
# tensor, stages, replicas, families
LAYOUTS = {
    "2 shares": (2, 1, 1, SOME),
    "2 stages": (1, 2, 1, SOME),
    "2 shares x 2 stages": (2, 2, 1, NARROW),
    "4 shares": (4, 1, 1, ("wide qwen2",)),
    "2 replicas of 2 shares": (2, 1, 2, SOME),
}


def config(family: str) -> MolmoConfig:
    return replace(synthetic.MODEL, text=replace(synthetic.MODEL.text, **FAMILIES[family]))


def network(family: str) -> Molmo:
    model = Molmo(config(family))
    model.reset_parameters(0)
    return model.eval()


def asked(family: str) -> list[Question]:
    """Single questions, some sampled, and trees."""
    single = answer_oracle.questions(config(family), 6, Options(max_new_tokens=7))
    for i in (1, 4):
        single[i] = replace(
            single[i],
            options=Options(max_new_tokens=7, temperature=0.9, top_k=20, seed=i, logprobs=2),
        )
    trees = answer_oracle.questions(config(family), 4, Options(max_new_tokens=5), same=2)
    return single + [replace(question, name=f"tree {question.name}") for question in trees]


def strategy(tensor: int, stages: int) -> str:
    ours = {
        "engine": "inference",
        "stages": stages,
        "slots": 4,
        "slot_tokens": 64,
        "prefill_tokens": 40,
    }
    return json.dumps({"tensor_parallel": {"autotp_size": tensor}, "molmo_ds": ours})


@dataclass(frozen=True)
class Traffic:
    """Of one rank."""

    tokens: int  # that its layers computed
    passed_by: int  # of prompts, all but their last: the last layer's MLP leaves them out
    all_reduce: int  # bytes of payload
    isend: int


def answers_on_a_rank(
    world: World, tensor: int, stages: int, families: tuple[str, ...]
) -> tuple[dict[str, dict[str, Answer]], Traffic]:
    """(answers by family and name, what the dense decoder sent)."""
    torch.set_num_threads(1)
    laid_out = parse("mine.json", json.loads(strategy(tensor, stages)))
    sent: Counter[str] = Counter()
    for name in ("all_reduce", "isend"):
        count_bytes(name, sent)
    out = {}
    traffic = None
    for family in families:
        whole = network(family).state_dict()

        def fill(
            cuts: dict[str, Cut], whole: dict[str, Tensor] = whole
        ) -> Iterator[tuple[str, Tensor]]:
            return ((name, whole[name][cut]) for name, cut in cuts.items())

        replica = Replica.over_ranks(config(family), laid_out, world, fill, EOS)
        mine = asked(family)[replica.index :: replica.count]
        sent.clear()
        out[family] = {one.name: one for one in answer(replica, mine)}
        traffic = traffic or Traffic(
            replica.prefilled + replica.row_steps,
            replica.prefilled - len(mine),
            sent["all_reduce"],
            sent["isend"],
        )
        drop_one(replica, mine, out[family])
        if replica.count == 1:
            recorded_alike(replica, laid_out.limits, mine, out[family])
    return out, traffic


def recorded_alike(
    replica: Replica, limits: Limits, questions: list[Question], whole: dict[str, Answer]
) -> None:
    """Decode steps that are replayed, sums over ranks included, give the same answers."""
    recorder = Recorder()
    again = Replica(replica.share, EOS, limits, Execution(buckets=True), recorder)
    found = {one.name: one.token_ids for one in answer(again, questions)}
    again.close()
    assert found == {name: one.token_ids for name, one in whole.items()}
    assert 0 < 2 * len(recorder.graphs) < sum(graph.replays for graph in recorder.graphs)


def compiled_on_a_rank(world: World, family: str) -> dict[str, Answer]:
    """Answers of two shares whose decode steps are compiled; sums over ranks are part of the graphs."""
    torch.set_num_threads(1)
    compiled.BACKEND = "aot_eager"
    laid_out = parse("mine.json", json.loads(strategy(2, 1)))
    whole = network(family).state_dict()
    share = Share.build(
        config(family),
        laid_out,
        world,
        lambda cuts: ((name, whole[name][cut]) for name, cut in cuts.items()),
    )
    replica = Replica(share, EOS, laid_out.limits, Execution(compile=True))
    found = {one.name: one for one in answer(replica, asked(family))}
    replica.close()
    assert counters["stats"]["unique_graphs"] > 1
    # outside of a grouped kernel the host must know how many tokens an expert gets
    assert bool(counters["graph_break"]) == (family == "olmoe")
    return found


def drop_one(replica: Replica, questions: list[Question], whole: dict[str, Answer]) -> None:
    """A question that is dropped while its pass is in flight leaves the others as they were."""
    replica.admit(questions)
    given: dict[str, list[int]] = {question.name: [] for question in questions}
    steps = 0
    while replica.busy:
        if steps == 3:
            replica.drop(questions[0].name)
            given.pop(questions[0].name)
        for piece in replica.step():
            if piece.end != "stop":
                given[piece.name].append(piece.token)
        steps += 1
    replica.close()
    assert given == {
        question.name: list(whole[question.name].token_ids) for question in questions[1:]
    }


def count_bytes(name: str, sent: Counter[str]) -> None:
    """Count the payloads of a function of torch.distributed, in this process from now on."""
    function = getattr(dist, name)

    def counted(tensor: Tensor, *args: object, **kwargs: object) -> object:
        sent[name] += tensor.numel() * tensor.element_size()
        return function(tensor, *args, **kwargs)

    setattr(dist, name, counted)


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, Answer]]:
    out = {}
    for family in FAMILIES:
        replica = Replica.of(
            network(family), EOS, Limits(slots=4, slot_tokens=64, prefill_tokens=40)
        )
        out[family] = {one.name: one for one in answer(replica, asked(family))}
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_tokens_of_one_process(layout: str, expected: dict) -> None:
    tensor, stages, replicas, families = LAYOUTS[layout]
    ranks = run_ranks(answers_on_a_rank, tensor * stages * replicas, tensor, stages, families)
    for family in families:
        wanted = expected[family]
        names = [question.name for question in asked(family)]
        for rank, (found, _) in enumerate(ranks):
            index = rank // tensor % replicas
            assert found[family].keys() == set(names[index::replicas])
            for name, one in found[family].items():
                assert (one.token_ids, one.end) == (wanted[name].token_ids, wanted[name].end), (
                    family,
                    name,
                    rank,
                )
                assert one.log_probability == pytest.approx(wanted[name].log_probability, abs=1e-4)
    assert {one.end for one in expected["qwen2"].values()} == {"stop", "length"}
    for rank, (_, traffic) in enumerate(ranks):
        one = 4 * synthetic.MODEL.text.hidden_size  # bytes of a hidden state
        hidden = one * traffic.tokens
        layers = synthetic.MODEL.text.num_hidden_layers // stages
        is_last = rank // (tensor * replicas) == stages - 1
        added = 2 * layers * hidden - is_last * one * traffic.passed_by
        assert traffic.all_reduce == (added if tensor > 1 else 0)
        assert traffic.isend == (hidden // tensor if stages > 1 and rank < tensor else 0)


@pytest.mark.everything
@pytest.mark.parametrize("family", SOME)
def test_compiled_steps_of_two_shares(family: str, expected: dict) -> None:
    """In every run of the suite test_graphs.py compiles those of one process, and Recorder replays those of shares."""
    for found in run_ranks(compiled_on_a_rank, 2, family):
        tokens = {name: one.token_ids for name, one in found.items()}
        assert tokens == {name: one.token_ids for name, one in expected[family].items()}


def test_the_files() -> None:
    sizes = {"tp8": (8, 1, 1, 64), "tp8_pp2": (8, 2, 1, 128), "ep8": (8, 1, 8, 64)}
    assert sorted(sizes) == sorted(path.stem for path in (ROOT / "ds_configs/infer").glob("*.json"))
    for name, size in sizes.items():
        s = read_strategy(f"ds_configs/infer/{name}.json")
        assert (s.tensor, s.stages, s.experts, s.limits.slots) == size
        assert s.execution == Execution()
        assert (s.engine, s.limits.slot_tokens, s.limits.prefill_tokens) == (
            "inference",
            2304,
            8192,
        )


def test_how_a_replica_computes_is_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    ours = {"engine": "inference", "compile": True, "graphs": False, "weights": "int8"}
    file.write_text(json.dumps({"molmo_ds": ours}))
    assert read_strategy(str(file)).execution == Execution(
        compile=True, graphs=False, weights="int8"
    )
    file.write_text(json.dumps({"molmo_ds": {**ours, "weights": "int4"}}))
    with pytest.raises(ValueError, match='molmo_ds.weights is "int4"; it must be'):
        read_strategy(str(file))


INFERENCE = {"engine": "inference"}
# strategy file, decoder, words of the sentence
REFUSED = {
    "to train with": ({"zero_optimization": {"stage": 3}}, "qwen2", "answer with ds_configs/infer/tp8.json"),
    "experts to train with": ({}, "olmoe", "answer with ds_configs/infer/ep8.json"),
    "stages to train with": ({"molmo_ds": {"engine": "pipeline", "stages": 2}}, "qwen2", "infer/tp8_pp2.json"),
    "idle": ({"molmo_ds": INFERENCE, "zero_optimization": {"stage": 3}}, "qwen2", "reads zero_optimization; leave"),
    "unknown": ({"molmo_ds": {**INFERENCE, "slot": 3}}, "qwen2", "no setting 'slot'; it has engine, stages"),
    "sequence": ({"molmo_ds": {**INFERENCE, "sequence_parallel_size": 2}}, "qwen2", "are for training"),
    "uneven slots": ({"molmo_ds": {**INFERENCE, "stages": 2, "slots": 5}}, "qwen2", "2 stages take turns"),
    "too many stages": ({"molmo_ds": {**INFERENCE, "stages": 4}}, "qwen2", "2 layers cannot fill 4 stages"),
    "dense experts": (
        {"molmo_ds": INFERENCE, "expert_parallel": {"enabled": True, "autoep_size": 2}}, "qwen2", "no experts",
    ),
    "experts elsewhere": (
        {"molmo_ds": INFERENCE, "expert_parallel": {"enabled": True, "autoep_size": 2}}, "olmoe", "write autoep_size=1",
    ),
    "too many shares": (
        {"molmo_ds": INFERENCE, "tensor_parallel": {"autotp_size": 4}}, "qwen2", "num_key_value_heads=2 does not",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_laid_out_is_one_sentence(name: str) -> None:
    values, family, words = REFUSED[name]
    with pytest.raises(ValueError, match=rf"^mine\.json.*{re.escape(words)}.*\.$"):
        refuse(config(family), parse("mine.json", values))


def test_what_the_weights_lack_is_said() -> None:
    world = World(0, 0, 1, torch.device("cpu"))
    laid_out = parse("mine.json", {"molmo_ds": INFERENCE})
    whole = network("qwen2").state_dict()

    def fill(cuts: dict[str, Cut], lost: str, changed: str) -> Iterator[tuple[str, Tensor]]:
        for name, cut in cuts.items():
            if name != lost:
                yield name, whole[name][cut][..., : 3 if name == changed else None]

    name = "layers.1.mlp.up_proj.weight"
    with pytest.raises(
        ValueError, match=f"The weights lack {name}; they are not those of this network"
    ):
        Share.build(config("qwen2"), laid_out, world, lambda cuts: fill(cuts, name, ""))
    with pytest.raises(ValueError, match=rf"{name} has a part of \[48, 3\], not \[48, 32\]"):
        Share.build(config("qwen2"), laid_out, world, lambda cuts: fill(cuts, "", name))
