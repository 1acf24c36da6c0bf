"""Generation: the cache changes nothing, and every way of choosing tokens does what it says."""

from dataclasses import replace

import pytest
import tiny_models
import torch
from tiny_models import FAMILIES, document, pack
from torch import Tensor

from molmo_ds.batch import Batch, learnt_rows_of
from molmo_ds.infer.generate import Session, generate, room, stream, stream_text
from molmo_ds.infer.options import Options
from molmo_ds.infer.sampling import sample
from molmo_ds.infer.text import cut
from molmo_ds.model.molmo import Molmo

EOS = 5
NEVER = tiny_models.WORDS + 1  # has an embedding and no logit


def prompts() -> Batch:
    """Three prompts of 12, 4 and 8 tokens, the second without a picture."""
    return pack([[document(2, [])], [document(0, [], seed=1)], [document(1, [], seed=2)]])


def decode(ids: list[int]) -> str:
    return "".join(chr(ord("a") + i % 26) for i in ids)


def extended(batch: Batch, row: int, ids: list[int]) -> Batch:
    """One prompt of `batch` and more tokens, as a batch of its own without padding."""
    length = int((batch.document_ids[row] != 0).sum())
    tokens = torch.tensor([*batch.input_ids[row, :length].tolist(), *ids])[None]
    start = row * batch.input_ids.shape[1]
    end = start + batch.input_ids.shape[1]
    mine = (batch.image_positions >= start) & (batch.image_positions < end)
    same = torch.ones_like(tokens, dtype=torch.int32)
    weights = torch.zeros(tokens.shape)
    return Batch(
        input_ids=tokens,
        labels=tokens,
        loss_weights=weights,
        position_ids=torch.arange(tokens.shape[1])[None],
        document_ids=same,
        branch_ids=same * 0,
        images=batch.images,
        image_masks=batch.image_masks,
        windows=batch.windows,
        image_positions=torch.where(mine, batch.image_positions - start, -1),
        learnt_rows=learnt_rows_of(weights),
    )


@torch.no_grad()
def greedy_without_cache(model: Molmo, batch: Batch, row: int, steps: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < steps and EOS not in ids:
        ids.append(int(model.logits(extended(batch, row, ids))[0, -1].argmax()))
    return ids[: ids.index(EOS)] if EOS in ids else ids


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_gives_the_logits_of_the_whole_sequence(family: str) -> None:
    model = tiny_models.model(family)
    batch = prompts()
    ids = torch.randint(0, tiny_models.WORDS, (3, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        session = Session(model, batch, 4)
        hidden = [session.first(), *(session.next(ids[:, i]) for i in range(4))]
        logits = [session.logits(x) for x in hidden]
        for row in range(3):
            whole = model.logits(extended(batch, row, ids[row].tolist()))[0, -5:]
            torch.testing.assert_close(
                torch.stack([step[row] for step in logits]), whole, atol=2e-5, rtol=0
            )


def test_a_session_puts_the_cores_back_even_after_an_error() -> None:
    model = tiny_models.model()
    before = [layer.self_attn.core for layer in model.layers]

    def stops(*_: object) -> None:
        raise RuntimeError("stop here")

    hook = model.layers[-1].mlp.register_forward_hook(stops)
    with pytest.raises(RuntimeError, match="stop here"):
        Session(model, prompts(), 2).first()
    hook.remove()
    assert [layer.self_attn.core for layer in model.layers] == before
    tokens = stream(model, prompts(), EOS)
    next(tokens)
    tokens.close()
    assert [layer.self_attn.core for layer in model.layers] == before


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_in_a_padded_batch_is_greedy_alone(family: str) -> None:
    model = tiny_models.model(family)
    batch = prompts()
    out = generate(model, batch, EOS, Options(max_new_tokens=12))
    for row in range(3):
        assert out.ids(row) == greedy_without_cache(model, batch, row, 12)


def test_rows_that_ended_drop_out_and_stay_ended() -> None:
    model = tiny_models.model()
    same = document(2, [])
    batch = pack([[same], [document(0, [], seed=1)], [same], [same], [document(1, [], seed=2)]])
    free = generate(model, batch, eos=NEVER, options=Options(max_new_tokens=10))
    # tokens that end rows early
    ends = sorted({int(free.token_ids[row, 0, 2]) for row in range(5)})
    sizes: list[int] = []
    hook = model.embed.register_forward_hook(lambda _, args, __: sizes.append(len(args[0][0])))
    for eos in ends:
        out = generate(model, batch, eos, Options(max_new_tokens=10))
        for row in range(5):
            ids = free.token_ids[row, 0].tolist()
            expected = ids[: ids.index(eos)] if eos in ids else ids
            assert out.ids(row) == expected
            assert set(out.token_ids[row, 0, len(expected) :].tolist()) <= {eos}
    hook.remove()
    assert len(set(sizes)) > 1  # a smaller batch was run


def test_scores_are_the_log_probabilities() -> None:
    model = tiny_models.model()
    batch = prompts()
    for options in (Options(max_new_tokens=5), Options(max_new_tokens=5, beams=3)):
        out = generate(model, batch, EOS, options)
        for row in range(3):
            for beam in range(options.beams):
                ids = out.ids(row, beam)
                ids = ids + [EOS] * (len(ids) < out.token_ids.shape[-1])
                with torch.no_grad():
                    logs = model.logits(extended(batch, row, ids))[0].log_softmax(-1)[
                        -len(ids) - 1 : -1
                    ]
                score = float(logs.gather(1, torch.tensor(ids)[:, None]).sum())
                assert float(out.scores[row, beam]) == pytest.approx(score, abs=1e-4)


def test_beams_find_the_best_of_all_sequences() -> None:
    model = tiny_models.model(vocab_size=8, embedding_size=8)
    batch = prompts()
    batch = batch.replace(input_ids=batch.input_ids % 8)
    # wide enough to see every pair
    out = generate(model, batch, EOS, Options(max_new_tokens=2, beams=8))
    for row in range(3):
        with torch.no_grad():
            first = model.logits(extended(batch, row, []))[0, -1].log_softmax(-1)
            second = [
                model.logits(extended(batch, row, [i]))[0, -1].log_softmax(-1) for i in range(8)
            ]
        table = {
            (i, j): float(first[i] + second[i][j]) for i in range(8) for j in range(8) if i != EOS
        }
        table[EOS, EOS] = float(first[EOS])
        best = sorted(table, key=table.get, reverse=True)[:8]
        assert [tuple(ids) for ids in out.token_ids[row].tolist()] == best
        assert out.scores[row].tolist() == pytest.approx([table[pair] for pair in best], abs=1e-4)


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(40_000, -1)
    chance = torch.rand(40_000, generator=torch.Generator().manual_seed(0))

    def shares(**options: float) -> Tensor:
        words = sample(logits, [Options(**options)] * 40_000, chance.tolist())
        return torch.bincount(words, minlength=4) / 40_000

    exact = (logits[0] / 0.7).softmax(-1)
    torch.testing.assert_close(shares(temperature=0.7), exact, atol=0.01, rtol=0)
    top_two = torch.cat((exact[:2] / exact[:2].sum(), torch.zeros(2)))
    torch.testing.assert_close(shares(temperature=0.7, top_k=2), top_two, atol=0.01, rtol=0)
    assert exact[0] < 0.8 < exact[:2].sum()
    torch.testing.assert_close(shares(temperature=0.7, top_p=0.8), top_two, atol=0.01, rtol=0)
    assert shares(temperature=0.7, top_p=float(exact[0]) - 0.01)[0] == 1
    edge = sample(logits[:2], [Options(temperature=1.0, top_k=2)] * 2, [0.0, 1 - 2**-24])
    assert edge.tolist() == [0, 1]  # never a word that was ruled out


def test_sampling_is_repeatable_and_top_1_is_greedy() -> None:
    model = tiny_models.model()
    batch = prompts()
    options = Options(max_new_tokens=8, temperature=1.5, seed=1)
    first, again = (generate(model, batch, EOS, options).token_ids for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, generate(model, batch, EOS, replace(options, seed=2)).token_ids)
    greedy = generate(model, batch, EOS, Options(max_new_tokens=8)).token_ids
    assert torch.equal(generate(model, batch, EOS, replace(options, top_k=1)).token_ids, greedy)


def test_a_row_that_drops_out_leaves_the_draws_of_the_others_alone() -> None:
    model = tiny_models.model()
    batch = prompts()
    options = Options(max_new_tokens=8, temperature=1.0, seed=4)
    free = generate(model, batch, NEVER, options)
    eos = int(free.token_ids[0, 0, 1])
    short = generate(model, batch, eos, options)
    for row in range(3):
        ids = free.token_ids[row, 0].tolist()
        assert short.ids(row) == (ids[: ids.index(eos)] if eos in ids else ids)


def test_stop_strings() -> None:
    model = tiny_models.model()
    batch = prompts()
    free = generate(model, batch, NEVER, Options(max_new_tokens=10))
    whole = free.texts(decode)
    stop = whole[0][3:5]
    out = generate(model, batch, NEVER, Options(max_new_tokens=10, stop=(stop,)), decode)
    assert out.texts(decode) == [cut(text, (stop,)) for text in whole]
    assert stop not in out.texts(decode)[0]
    assert len(out.texts(decode)[0]) == whole[0].index(stop)
    with pytest.raises(ValueError, match="need `decode`"):
        generate(model, batch, EOS, Options(stop=("x",)))


def test_the_stream_is_the_answer_in_pieces() -> None:
    model = tiny_models.model()
    prompt = pack([[document(1, [])]])
    text = generate(model, prompt, NEVER, Options(max_new_tokens=12)).texts(decode)[0]
    assert list(stream_text(model, prompt, NEVER, Options(max_new_tokens=12), decode)) == list(text)
    stop = (text[6:8],)
    pieces = list(stream_text(model, prompt, NEVER, Options(max_new_tokens=12, stop=stop), decode))
    assert "".join(pieces) == cut(text, stop)

    def in_bytes(ids: list[int]) -> str:  # two tokens make a character
        return bytes(b for i in range(len(ids)) for b in ("é".encode()[i % 2],)).decode(
            errors="replace"
        )

    pieces = list(stream_text(model, prompt, NEVER, Options(max_new_tokens=5), in_bytes))
    assert pieces[:2] == ["é", "é"] and "\ufffd" not in "".join(pieces[:2])


def test_ranks_may_agree_to_go_on() -> None:
    model = tiny_models.model()
    batch = prompts()
    eos = int(generate(model, batch, NEVER, Options(max_new_tokens=1)).token_ids[0, 0, 0])
    asked: list[bool] = []

    def others_need_six(done: bool) -> bool:
        asked.append(done)
        return done and len(asked) >= 6

    alone = generate(model, pack([[document(2, [])]]), eos, Options(max_new_tokens=9))
    together = generate(
        model, pack([[document(2, [])]]), eos, Options(max_new_tokens=9), all_done=others_need_six
    )
    assert alone.token_ids.shape[-1] == 1 and together.token_ids.shape[-1] == 6
    assert alone.ids(0) == together.ids(0) == []


NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"beams": 0}, "beams is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"temperature": -1.0}, "not negative"),
        ({"temperature": NAN}, "finite"),
        ({"temperature": float("inf")}, "finite"),
        ({"temperature": "1"}, "finite"),
        ({"top_p": 0.0}, "top_p lies above 0"),
        ({"top_p": NAN}, "top_p lies above 0"),
        ({"top_p": 1.5}, "top_p lies above 0"),
        ({"seed": 2**64}, "64 bits"),
        ({"stop": ("a", "")}, "none that is empty"),
        ({"stop": "ab"}, "it holds texts"),
        ({"beams": 2, "temperature": 1.0}, "does not sample"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_no_temperature_is_too_small() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [500.0, -500.0, 499.0]])
    for temperature in (5e-324, 1e-300, 1e-40, 1e-6):
        assert sample(logits, [Options(temperature=temperature)] * 2, [0.0, 0.999]).tolist() == [
            1,
            0,
        ]


def test_more_beams_than_words() -> None:
    with pytest.raises(
        ValueError,
        match=f"{tiny_models.WORDS + 1} beams are more than the {tiny_models.WORDS} words",
    ):
        generate(tiny_models.model(), prompts(), EOS, Options(beams=tiny_models.WORDS + 1))


ROOM = 5  # new tokens for the longest of the prompts


def test_beams_end_at_the_last_position() -> None:
    batch = prompts()
    places = [int(n) for n in (batch.document_ids != 0).sum(1)]
    model = tiny_models.model(max_position_embeddings=max(places) + ROOM)
    out = generate(model, batch, EOS, Options(max_new_tokens=1000, beams=3))
    rooms = [max(places) + ROOM - n for n in places]
    assert [len(out.ids(row)) == rooms[row] for row in range(3)] == out.cut.tolist()
    assert (
        all(len(out.ids(row, beam)) <= rooms[row] for row in range(3) for beam in range(3))
        and out.cut.any()
    )
    for row in range(3):  # frozen there, not searched on
        alone = generate(model, batch, EOS, Options(max_new_tokens=rooms[row], beams=3))
        assert out.ids(row) == alone.ids(row)
        assert out.scores[row].tolist() == pytest.approx(alone.scores[row].tolist(), abs=1e-4)


@pytest.mark.parametrize("way", [{}, {"temperature": 1.0}])
def test_every_row_ends_at_the_last_position(way: dict) -> None:
    batch = prompts()
    lengths = (batch.document_ids != 0).sum(1).tolist()
    known = max(lengths) + ROOM
    short = tiny_models.model(max_position_embeddings=known)
    free = generate(tiny_models.model(), batch, NEVER, Options(max_new_tokens=known, **way))
    out = generate(short, batch, NEVER, Options(max_new_tokens=1000, **way))
    assert out.token_ids.shape[-1] == known - min(lengths)
    for row, length in enumerate(lengths):
        ids = out.ids(row)
        assert len(ids) == known - length
        assert ids == free.ids(row)[: known - length]
    assert out.cut.tolist() == [True] * 3
    assert not free.cut.any()
    enough = generate(short, batch, NEVER, Options(max_new_tokens=ROOM, **way))
    assert not enough.cut.any() and enough.token_ids.shape[-1] == ROOM


def test_an_answer_that_ends_by_itself_is_not_cut() -> None:
    batch = prompts()
    lengths = (batch.document_ids != 0).sum(1).tolist()
    model = tiny_models.model(max_position_embeddings=max(lengths) + ROOM)
    free = generate(model, batch, NEVER, Options(max_new_tokens=1000))
    # what would have been the last token of the first row
    eos = int(free.token_ids[0, 0, ROOM - 1])
    wanted = [eos not in free.ids(row) for row in range(3)]
    assert generate(model, batch, eos, Options(max_new_tokens=1000)).cut.tolist() == wanted
    assert wanted[0] is False
    stop = (free.texts(decode)[0][-2:],)
    wanted = [stop[0] not in text for text in free.texts(decode)]
    assert (
        generate(model, batch, NEVER, Options(max_new_tokens=1000, stop=stop), decode).cut.tolist()
        == wanted
    )


def test_a_cut_answer_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    prompt = pack([[document(1, [])]])
    length = int((prompt.document_ids != 0).sum())
    model = tiny_models.model(max_position_embeddings=length + 4)
    assert room(model, prompt).tolist() == [4]
    pieces = list(stream_text(model, prompt, NEVER, Options(max_new_tokens=9), decode))
    assert len("".join(pieces)) == 4
    assert [record.getMessage()[:30] for record in caplog.records] == [
        "1 of 1 answers ended unfinishe"
    ]
    caplog.clear()
    list(stream_text(model, prompt, NEVER, Options(max_new_tokens=4), decode))
    assert not caplog.records


def test_a_prompt_that_leaves_no_room() -> None:
    batch = prompts()
    longest = int((batch.document_ids != 0).sum(1).max())
    model = tiny_models.model(max_position_embeddings=longest)
    for options in (Options(), Options(beams=2)):
        with pytest.raises(
            ValueError,
            match=f"The prompt has {longest} tokens and the model knows {longest} positions",
        ):
            generate(model, batch, EOS, options)
    assert room(model, pack([[document(0, [], seed=1)]])).tolist()[0] > 0


def test_ranks_that_step_together_go_on_past_their_own_last_position() -> None:
    prompt = pack([[document(1, [])]])
    length = int((prompt.document_ids != 0).sum())
    model = tiny_models.model(max_position_embeddings=length + 2)
    steps = list(
        stream(model, prompt, NEVER, Options(max_new_tokens=6), all_done=lambda done: False)
    )
    assert len(steps) == 6  # the others have more room
    assert [int(tokens) == NEVER for tokens, _ in steps] == [False, False, True, True, True, True]
