"""Draws and choices; tests/model/test_generate.py has the distribution that is sampled."""

import numpy as np
import pytest
import torch

from molmo_ds.infer.options import Options
from molmo_ds.infer.sampling import choose, draw, greedy, summary

# the first 24 bits of blake2b-64 of "seed/place/name": 0/0/a, 0/1/a, 1/0/a, 0/0/b
PINNED = [bits / 2**24 for bits in (0x8C2EF7, 0xA763B3, 0xFB0A7C, 0x870AEE)]


def test_a_draw_is_a_pure_function_and_stays_what_it_is() -> None:
    """Pinned: a request that is sent again to another version goes on with the same draws."""
    assert [draw(0, "a", 0), draw(0, "a", 1), draw(1, "a", 0), draw(0, "b", 0)] == PINNED
    assert all(value * 2**24 == int(value * 2**24) for value in PINNED)  # float32 holds it


def test_draws_are_uniform_and_do_not_follow_each_other() -> None:
    values = np.array([[draw(seed, "x", place) for place in range(200)] for seed in range(50)])
    counts = np.histogram(values, 20, (0, 1))[0]
    assert values.min() >= 0 and values.max() < 1
    assert ((counts - 500) ** 2 / 500).sum() < 43.8  # chi-square of 19 degrees, one in a thousand
    for a, b in ((values[:, :-1], values[:, 1:]), (values[:-1], values[1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.033  # 3.3 standard errors


def test_shares_of_the_words_choose_what_all_of_them_do() -> None:
    logits = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    logits[0, 3] = logits[0, 14] = 5.0  # of equal ones the first
    logits[1, 19] = logits[1, 13] = 5.0
    whole = choose(logits, [Options()] * 6, [0.0] * 6)
    for cuts in ([20], [7, 7, 6], [10, 10]):
        starts = [sum(cuts[:i]) for i in range(len(cuts))]
        parts = [summary(part, first) for part, first in zip(logits.split(cuts, -1), starts)]
        found = greedy(torch.stack(parts))
        assert found.tokens.tolist() == whole.tokens.tolist() == logits.argmax(-1).tolist()
        torch.testing.assert_close(
            found.log_probabilities, whole.log_probabilities, atol=1e-6, rtol=0
        )
    assert whole.tokens[:2].tolist() == [3, 13]


def test_a_row_is_sampled_as_alone() -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(1))
    options = [
        Options(),
        Options(temperature=0.7),
        Options(temperature=1.5, top_k=3),
        Options(temperature=1, top_p=0.4),
    ]
    draws = [0.9, 0.9, 0.99, 0.5]
    together = choose(logits, options, draws)
    alone = [choose(logits[i : i + 1], options[i : i + 1], draws[i : i + 1]) for i in range(4)]
    assert together.tokens.tolist() == [int(one.tokens) for one in alone]
    known = logits.log_softmax(-1)  # of the model, whatever the temperature
    assert together.log_probabilities.tolist() == pytest.approx(
        known[range(4), together.tokens].tolist()
    )


def test_the_likeliest_words_are_named() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    found = choose(logits, [Options(logprobs=2)], [0.0])
    assert found.top_tokens.tolist() == [[1, 3]]
    torch.testing.assert_close(found.top_log_probabilities, logits.log_softmax(-1)[:, [1, 3]])


def test_equally_likely_words_do_not_change_places() -> None:
    """By the last bit of a logit, which depends on how many rows are computed together."""
    logits = torch.zeros(64, 300)
    draws = [place / 64 for place in range(64)]
    options = [Options(temperature=1.0)] * 64
    words = choose(logits, options, draws).tokens.tolist()
    assert words == [int(300 * place / 64) for place in range(64)]
    rounded = logits + 1e-7 * torch.randn(64, 300, generator=torch.Generator().manual_seed(0))
    found = choose(rounded, options, draws).tokens.tolist()
    exact = [word for word, place in zip(words, range(64)) if 300 * place % 64]
    assert [word for word, place in zip(found, range(64)) if 300 * place % 64] == exact
