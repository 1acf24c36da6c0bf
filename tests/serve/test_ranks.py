"""Two ranks behind one front: the first one dials in, both make the same calls."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from molmo_ds.data.tokens import Tokenizer
from molmo_ds.engine.launch import World
from molmo_ds.serve.worker import Ranks, Worker
from molmo_ds.testing.parrot import Parrot
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.testing.serving import Server, chat, data_url, post


def work(world: World, server: Server, eos: int) -> tuple[list[str], list[str], str]:
    """(questions, dropped ones, the sentence at the end) of a rank."""
    parrot = Parrot(eos, 0.002)
    ranks = Ranks(tuple(range(world.size)))
    front = server.dialled(patience=1.0) if ranks.is_first else None
    with pytest.raises(ValueError) as ended:
        Worker(parrot, ranks, front).run()
    return [question.name for question in parrot.asked], parrot.dropped, str(ended.value)


def test_every_rank_makes_the_same_calls(folder: Path, tokenizer: Tokenizer) -> None:
    server = Server(folder)
    with ThreadPoolExecutor() as background:
        with server.front_in_a_thread():
            ranks = background.submit(run_ranks, work, 2, server, tokenizer.eos)
            server.wait_for_engine()
            assert post(server.url, chat("How many?", data_url(), n=2))[0] == 200
            assert post(server.url, chat("one two " + "three " * 40, stop="two"))[0] == 200
            assert post(server.url, chat("Why?"))[0] == 200
        first, second = ranks.result()
    assert first == second
    asked, dropped, sentence = first
    assert len(asked) == 4 and dropped == asked[2:3]
    assert "has not answered for 1 s" in sentence
