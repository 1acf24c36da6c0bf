"""A replica in one process: whatever runs together, in whichever slots, every answer is the one without a cache."""

from collections import Counter
from dataclasses import replace

import answer_oracle
import pytest

from molmo_ds.architecture import MolmoConfig
from molmo_ds.engine.strategy import Limits
from molmo_ds.infer.answers import answer
from molmo_ds.infer.options import Options
from molmo_ds.infer.question import Answer, Question
from molmo_ds.infer.replica import Replica
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing import synthetic

FAMILIES = {
    "qwen2": {"attention_bias": True},
    "llama": {"model_type": "llama", "attention_bias": False},
    "olmo": {"model_type": "olmo", "attention_bias": False, "norm_type": "layer", "clip_qkv": 0.5},
    "olmo2": {"model_type": "olmo2", "attention_bias": False, "qk_norm": True, "norm_after": True},
    "olmoe": {
        "model_type": "olmoe", "attention_bias": False, "qk_norm": True, "num_experts": 4, "num_experts_per_tok": 2,
        "intermediate_size": 16,
    },
}  # fmt: skip
FEW = Limits(slots=4, slot_tokens=64, prefill_tokens=40)
NEVER = 97  # has an embedding and no logit


def network(family: str = "qwen2") -> Molmo:
    config = replace(synthetic.MODEL, text=replace(synthetic.MODEL.text, **FAMILIES[family]))
    model = Molmo(config)
    model.reset_parameters(0)
    return model.eval()


Made = dict[str, list[tuple[int, float]]]


def oracle(model: Molmo, asked: list[Question]) -> Made:
    return {question.name: answer_oracle.run(model, question) for question in asked}


def an_end(made: Made) -> int:
    """A word that ends some of the answers, and not all of them at once."""
    seen = Counter(word for tokens in made.values() for word in {token for token, _ in tokens})
    return next(word for word, count in seen.most_common() if count <= len(made) // 2)


def answers(replica: Replica, asked: list[Question]) -> dict[str, Answer]:
    return {one.name: one for one in answer(replica, asked)}


def check(asked: list[Question], made: Made, eos: int, found: dict[str, Answer]) -> None:
    assert found.keys() == {question.name for question in asked}
    for question in asked:
        ids, log_probability, end = answer_oracle.cut(made[question.name], question, eos)
        one = found[question.name]
        assert (list(one.token_ids), one.end) == (ids, end), question.name
        assert one.log_probability == pytest.approx(log_probability, abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_without_a_cache(family: str) -> None:
    model = network(family)
    asked = answer_oracle.questions(model.config, 11, Options(max_new_tokens=12))
    asked = [
        replace(q, options=replace(q.options, max_new_tokens=1 + i * 7 % 12))
        for i, q in enumerate(asked)
    ]
    made = oracle(model, asked)
    eos = an_end(made)
    replica = Replica.of(model, eos, FEW)
    check(asked, made, eos, answers(replica, asked))


def test_only_rows_that_go_on_are_computed() -> None:
    model = network()
    asked = answer_oracle.questions(model.config, 7, Options(max_new_tokens=20))
    made = oracle(model, asked)
    eos = an_end(made)
    replica = Replica.of(model, eos, FEW)
    found = answers(replica, asked)
    tokens = sum(len(one.token_ids) + (one.end == "stop") for one in found.values())
    # the first token of each comes from its prefill
    assert replica.row_steps == tokens - len(asked)
    assert replica.prefilled == sum(question.length for question in asked)
    assert len({len(one.token_ids) for one in found.values()}) > 2
    assert replica.free == FEW.slots and not replica.busy


def test_questions_about_one_picture_are_a_tree() -> None:
    model = network()
    asked = answer_oracle.questions(model.config, 10, Options(max_new_tokens=9), same=5)
    made = oracle(model, asked)
    eos = an_end(made)
    replica = Replica.of(model, eos, replace(FEW, slots=8))
    found = answers(replica, asked)
    check(asked, made, eos, found)
    prefixes = 5 + 9  # of one and of two crops, once each
    assert replica.prefilled == prefixes + sum(
        question.length - question.prefix for question in asked
    )
    narrow = Replica.of(model, eos, FEW)  # fewer slots than questions of a picture
    check(asked, made, eos, answers(narrow, asked))


def test_equal_words_before_unlike_pictures_are_no_tree() -> None:
    model = network()
    one = answer_oracle.questions(model.config, 2, Options(max_new_tokens=5), same=2)
    other = answer_oracle.prompt(model.config, 1, 3, seed=0, picture=7)
    asked = [*one, Question(name="other", prompt=other, options=Options(max_new_tokens=5))]
    replica = Replica.of(model, NEVER, FEW)
    check(asked, oracle(model, asked), NEVER, answers(replica, asked))
    assert replica.prefilled == sum(q.length for q in asked) - one[0].prefix


@pytest.mark.parametrize("ways", [{"temperature": 0.8}, {"temperature": 1.5, "top_k": 5}])
def test_draws_depend_on_nothing_but_seed_name_and_place(ways: dict) -> None:
    model = network()
    asked = answer_oracle.questions(model.config, 7, Options(max_new_tokens=8, seed=3, **ways))
    found = answers(Replica.of(model, NEVER, FEW), asked)
    check(asked, oracle(model, asked), NEVER, found)
    alone = answers(Replica.of(model, NEVER, replace(FEW, slots=1)), asked[::-1])
    assert {name: one.token_ids for name, one in alone.items()} == {
        n: one.token_ids for n, one in found.items()
    }
    other = [replace(q, options=replace(q.options, seed=4)) for q in asked]
    changed = answers(Replica.of(model, NEVER, FEW), other)
    assert all(changed[name].token_ids != one.token_ids for name, one in found.items())
    renamed = [replace(q, name=f"again {i}", draws=q.name) for i, q in enumerate(asked)]
    again = answers(Replica.of(model, NEVER, FEW), renamed)
    assert [again[q.name].token_ids for q in renamed] == [found[q.name].token_ids for q in asked]


def test_greedy_and_sampled_rows_share_a_step() -> None:
    model = network()
    asked = answer_oracle.questions(model.config, 4, Options(max_new_tokens=6))
    asked[1] = replace(asked[1], options=Options(max_new_tokens=6, temperature=1.2, seed=8))
    asked[2] = replace(asked[2], options=Options(max_new_tokens=6, logprobs=3))
    replica = Replica.of(model, NEVER, FEW)
    replica.admit(asked)
    pieces = []
    while replica.busy:
        pieces += replica.step()
    for question in asked:
        mine = [piece for piece in pieces if piece.name == question.name]
        assert [piece.token for piece in mine] == [
            token for token, _ in answer_oracle.run(model, question)
        ]
        for piece in mine:
            assert len(piece.top) == question.options.logprobs
            if piece.top:
                assert piece.top[0] == (piece.token, pytest.approx(piece.log_probability, abs=1e-5))
                assert piece.top[0][1] > piece.top[1][1] > piece.top[2][1]


@pytest.mark.parametrize("ways", [{}, {"temperature": 1.0, "seed": 5}])
def test_what_was_begun_goes_on_as_if_never_interrupted(ways: dict) -> None:
    model = network()
    asked = answer_oracle.questions(model.config, 4, Options(max_new_tokens=10, **ways), same=2)
    whole = answers(Replica.of(model, NEVER, FEW), asked)
    begun = [replace(q, begun=whole[q.name].token_ids[: 3 * i]) for i, q in enumerate(asked)]
    found = answers(Replica.of(model, NEVER, FEW), begun)
    assert {n: one.token_ids for n, one in found.items()} == {
        n: one.token_ids for n, one in whole.items()
    }


def test_an_answer_ends_at_the_last_position() -> None:
    model = network()
    known = model.config.text.max_position_embeddings
    asked = answer_oracle.questions(model.config, 3, Options(max_new_tokens=1000))
    found = answers(Replica.of(model, NEVER, Limits(slots=2, slot_tokens=9999)), asked)
    for question in asked:
        assert found[question.name].end == "context"
        assert len(found[question.name].token_ids) == known - question.length
    short = answers(Replica.of(model, NEVER, Limits(slots=2, slot_tokens=20)), asked)
    for question in asked:
        assert (
            short[question.name].token_ids == found[question.name].token_ids[: 20 - question.length]
        )


def test_a_dropped_question_leaves_the_others_alone() -> None:
    model = network()
    asked = answer_oracle.questions(model.config, 6, Options(max_new_tokens=8))
    whole = answers(Replica.of(model, NEVER, FEW), asked)
    replica = Replica.of(model, NEVER, FEW)
    replica.admit(asked)
    pieces = replica.step()
    replica.drop(asked[0].name)  # runs
    replica.drop(asked[5].name)  # waits
    replica.drop("unknown")
    while replica.busy:
        pieces += replica.step()
    given: dict[str, list[int]] = {}
    for piece in pieces:
        given.setdefault(piece.name, []).append(piece.token)
    assert given.pop(asked[0].name) == list(whole[asked[0].name].token_ids[:1])
    assert given == {q.name: list(whole[q.name].token_ids) for q in asked[1:5]}
    assert replica.free == FEW.slots


def test_the_networks_own_cores_come_back() -> None:
    model = network()
    before = [layer.self_attn.core for layer in model.layers]
    answers(
        Replica.of(model, NEVER, FEW),
        answer_oracle.questions(model.config, 2, Options(max_new_tokens=2)),
    )
    assert [layer.self_attn.core for layer in model.layers] == before


def wrong(config: MolmoConfig) -> dict[str, Question]:
    one = answer_oracle.questions(config, 1, Options(max_new_tokens=4))[0]
    return {
        "already; give each": replace(one, name="taken"),
        "the prompt has 70 tokens and an answer has 64 positions": replace(
            one, prompt=answer_oracle.prompt(config, 0, 69, seed=0)
        ),
        "no beam search": replace(one, options=Options(beams=2)),
        "whole answer already": replace(one, begun=(7, 8, 9, 10)),
        "more words than there are": replace(one, options=Options(logprobs=97)),
    }


@pytest.mark.parametrize("sentence", wrong(synthetic.MODEL))
def test_what_cannot_be_answered_is_said_before_any_is_queued(sentence: str) -> None:
    model = network()
    replica = Replica.of(model, NEVER, FEW)
    good = answer_oracle.questions(model.config, 2)
    replica.admit([replace(good[0], name="taken")])
    with pytest.raises(ValueError, match=sentence):
        replica.admit([good[1], wrong(model.config)[sentence]])
    assert replica.waiting == 1


def test_no_answer_sees_what_a_slot_held_before() -> None:
    model = network()
    asked = answer_oracle.questions(model.config, 1, Options(max_new_tokens=6))
    replica = Replica.of(model, NEVER, replace(FEW, slots=1))
    first = answers(replica, asked)
    for core in replica.slots[0].cores:
        for kept in core.kept:
            kept.fill_(3.0)
    assert answers(replica, asked)[asked[0].name].token_ids == first[asked[0].name].token_ids
