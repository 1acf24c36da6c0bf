"""HeMolmo's answers from slots are those of its two passes without a cache, whatever runs together with them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from recorder import Recorder
from torch import Tensor

from molmo_ds import presets
from molmo_ds.batch import SelectionSample
from molmo_ds.config import DataConfig, PromptConfig, RunConfig
from molmo_ds.data.order.selected import collate_selected
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.data.tokens import train_tokenizer
from molmo_ds.engine.answering.layout import refuse
from molmo_ds.engine.strategy import Execution, Limits, Strategy
from molmo_ds.infer import prefill, selected, slots
from molmo_ds.infer.answers import answer
from molmo_ds.infer.generate import Session, generate
from molmo_ds.infer.options import Options
from molmo_ds.infer.question import Answer, Question
from molmo_ds.infer.replica import Replica
from molmo_ds.model.molmo import Molmo
from molmo_ds.serve.sample_bytes import pack_sample, read_sample

SHAPES = [(80, 40), (30, 30), None, (160, 90), (40, 120), (80, 40), None, (64, 64), (200, 30)]
NEW = 12
NOISE = 2e-4  # of a float32 sum of log-probabilities, as in test_replica
NEVER = 600  # no word


@dataclasses.dataclass(frozen=True)
class Made:
    """A network, what it is asked, and the answers (token ids [L], their log-probability) without a cache."""

    model: Molmo
    builder: SampleBuilder
    asked: list[Question]
    expected: dict[str, tuple[list[int], float]]


def config(words: Path, attention: str = "within_image", positions: int = 256) -> RunConfig:
    model = presets.get("tiny_hemolmo")
    text = dataclasses.replace(
        model.text,
        vocab_size=288,
        embedding_size=288,
        max_position_embeddings=positions,
        image_attention=attention,
        initializer_range=0.1,
    )
    # with usual first weights answers are alike, with three times these batches alone differ by 4e-3
    model = dataclasses.replace(
        model,
        text=text,
        vision=dataclasses.replace(model.vision, initializer_range=0.1),
        connector=dataclasses.replace(model.connector, initializer_range=0.1),
        selection=dataclasses.replace(model.selection, picks=5),
    )
    prompts = PromptConfig(image_last=True, always_start_with_space=False)
    return RunConfig(model=model, data=DataConfig(tokenizer=str(words), prompts=prompts))


def network(made: RunConfig) -> Molmo:
    model = Molmo(made.model)
    model.reset_parameters(3)
    return model.eval()


def picture(size: tuple[int, int], seed: int) -> np.ndarray:
    noise = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3))
    return noise.astype(np.uint8)


def prompts(builder: SampleBuilder) -> list[SelectionSample]:
    """Questions of unlike lengths about pictures of unlike sizes; questions 0 and 5 are about one picture."""
    out = []
    for number, size in enumerate(SHAPES):
        shown = [] if size is None else [picture(size, number % 5)]
        out.append(builder.prompt(shown, "Where is it? " * (1 + number * 3 % 4) + str(number)))
    return out


def alone(model: Molmo, sample: SelectionSample, new: int = NEW) -> tuple[list[int], float]:
    ids, scores = selected.answer(model, collate_selected([sample]), NEVER, new)
    return ids[0].tolist(), float(scores[0])


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    train_tokenizer(["Where is it? User: Assistant:"], 288, folder)
    return folder


@pytest.fixture(scope="module")
def made(words: Path) -> Made:
    settings = config(words)
    model = network(settings)
    builder = SampleBuilder(settings)
    asked = [
        Question(name=str(number), prompt=prompt, options=Options(max_new_tokens=NEW))
        for number, prompt in enumerate(prompts(builder))
    ]
    expected = {question.name: alone(model, question.prompt) for question in asked}
    assert len({tuple(ids) for ids, _ in expected.values()}) == len(SHAPES), "answers are alike"
    return Made(model, builder, asked, expected)


def check(found: list[Answer], expected: dict[str, tuple[list[int], float]]) -> None:
    assert {one.name for one in found} == expected.keys()
    for one in found:
        ids, score = expected[one.name]
        assert list(one.token_ids) == ids, one.name
        assert one.log_probability == pytest.approx(score, abs=NOISE)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(slots=1, slot_tokens=256),
        Limits(slots=4, slot_tokens=256, prefill_tokens=200),
        Limits(slots=16, slot_tokens=256),
    ],
    ids=lambda limits: str(limits.slots),
)
def test_slots_and_neighbours_change_nothing(limits: Limits, made: Made) -> None:
    for order in (made.asked, made.asked[::-1]):
        replica = Replica.of(made.model, NEVER, limits)
        check(list(answer(replica, order)), made.expected)
        assert replica.free == limits.slots and not replica.busy


def test_recorded_steps_of_buckets(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step reads, places and positions, lies in buffers that stay, as a CUDA graph needs it."""
    monkeypatch.setattr(slots, "ROUND", 16)
    recorder = Recorder()
    limits = Limits(slots=4, slot_tokens=256, prefill_tokens=200)
    replica = Replica.of(made.model, NEVER, limits, Execution(buckets=True), recorder)
    check(list(answer(replica, made.asked)), made.expected)
    assert sum(graph.replays for graph in recorder.graphs) > 2 * len(recorder.graphs) > 4


def test_answers_of_unlike_lengths(made: Made) -> None:
    """An end token that some answers have, and the rest of `selected.answer` is left out as it leaves it out."""
    tokens = [ids for ids, _ in made.expected.values()]
    eos = next(
        token for ids in tokens for token in ids if 1 < sum(token in one for one in tokens) < 8
    )
    replica = Replica.of(made.model, eos, Limits(slots=4, slot_tokens=256, prefill_tokens=200))
    ends = set()
    for one in answer(replica, made.asked):
        prompt = made.asked[int(one.name)].prompt
        ids, score = selected.answer(made.model, collate_selected([prompt]), eos, NEW)
        said = ids[0].tolist()
        assert list(one.token_ids) == (said[: said.index(eos)] if eos in said else said)
        assert one.log_probability == pytest.approx(float(score), abs=NOISE)
        ends.add((one.end, len(one.token_ids)))
    assert {end for end, _ in ends} == {"stop", "length"} and len(ends) > 2


def test_what_was_begun_goes_on(made: Made) -> None:
    begun = [
        dataclasses.replace(question, begun=tuple(made.expected[question.name][0][:4]))
        for question in made.asked
    ]
    replica = Replica.of(made.model, NEVER, Limits(slots=16, slot_tokens=256))
    for one in answer(replica, begun):
        assert list(one.token_ids) == made.expected[one.name][0]


def test_logits_of_a_batch_in_slots(made: Made) -> None:
    """Every step's logits of all rows together against those of each row alone, which runs over all its tokens."""
    samples = [question.prompt for question in made.asked]
    tokens = torch.tensor([made.expected[question.name][0] for question in made.asked])
    with torch.no_grad():
        session = Session(made.model, collate_selected(samples), NEW)
        steps = [session.logits(session.first())]
        steps += [session.logits(session.next(tokens[:, step])) for step in range(NEW - 1)]
        for row, question in enumerate(made.asked):
            begun = dataclasses.replace(question, begun=tuple(tokens[row, :-1].tolist()))
            whole = made.model.logits(prefill.pack([[begun]])[0])[0, -NEW:]
            torch.testing.assert_close(
                torch.stack([step[row] for step in steps]), whole, atol=1e-4, rtol=0
            )
            assert whole.argmax(-1).tolist() == tokens[row].tolist()


def test_batches_and_beams(made: Made) -> None:
    together = collate_selected([question.prompt for question in made.asked])
    found = generate(made.model, together, NEVER, Options(max_new_tokens=NEW))
    for row, (ids, score) in enumerate(made.expected.values()):
        assert found.token_ids[row, 0].tolist() == ids
        assert float(found.scores[row, 0]) == pytest.approx(score, abs=NOISE)
    few = collate_selected([question.prompt for question in made.asked[:3]])
    beams = generate(made.model, few, 0, Options(max_new_tokens=4, beams=3))
    for row, question in enumerate(made.asked[:3]):
        for beam in range(3):
            ids = beams.token_ids[row, beam].tolist()
            ids = ids[: ids.index(0) + 1] if 0 in ids else ids
            assert float(beams.scores[row, beam]) == pytest.approx(
                log_probability(made.model, question, ids), abs=NOISE
            )


@torch.no_grad()
def log_probability(model: Molmo, question: Question, ids: list[int]) -> float:
    begun = dataclasses.replace(question, begun=tuple(ids))
    logits: Tensor = model.logits(prefill.pack([[begun]])[0])[0, -len(ids) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())


def test_questions_about_one_picture_are_rows_of_their_own(made: Made) -> None:
    pair = [made.asked[0], made.asked[5]]
    assert torch.equal(pair[0].prompt.images, pair[1].prompt.images)
    replica = Replica.of(made.model, NEVER, Limits(slots=4, slot_tokens=256))
    check(list(answer(replica, pair)), {name: made.expected[name] for name in ("0", "5")})
    # both as long as the longer
    assert replica.prefilled == 2 * max(question.length for question in pair)


def test_so_are_those_that_stand_behind_it(words: Path) -> None:
    """With image_last=false the picture is a prefix, which the scorer sees before each question."""
    settings = config(words)
    prompts = dataclasses.replace(settings.data.prompts, image_last=False)
    settings = dataclasses.replace(
        settings, data=dataclasses.replace(settings.data, prompts=prompts)
    )
    model = network(settings)
    builder = SampleBuilder(settings)
    seen = builder.see([picture((80, 40), 0)])
    asked = [
        Question(name=name, prompt=builder.prompt(seen, name), options=Options(max_new_tokens=4))
        for name in ("What?", "Who is it?")
    ]
    replica = Replica.of(model, NEVER, Limits(slots=4, slot_tokens=256))
    check(list(answer(replica, asked)), {one.name: alone(model, one.prompt, 4) for one in asked})


@pytest.mark.parametrize("attention", ["causal", "image_tokens"])
def test_other_attention_between_picture_tokens(attention: str, words: Path) -> None:
    """With image_tokens a row's low resolution sees its high one, in the first pass not before it is there."""
    settings = config(words, attention)
    model = network(settings)
    samples = prompts(SampleBuilder(settings))
    replica = Replica.of(model, NEVER, Limits(slots=16, slot_tokens=256))
    asked = [
        Question(name=str(number), prompt=prompt, options=Options(max_new_tokens=4))
        for number, prompt in enumerate(samples)
    ]
    check(list(answer(replica, asked)), {one.name: alone(model, one.prompt, 4) for one in asked})


def test_an_answer_ends_at_the_last_position(made: Made, words: Path) -> None:
    """A picture of 4 crops, 5 of whose 2 x 5 windows are shown, ends where (rows + 1) x columns windows end."""
    reach = made.asked[8].prompt.reach
    shown = 5 + 2  # windows, and a token after each row
    assert reach == len(made.asked[8].prompt.input_ids) - shown + (2 + 1) * 5
    settings = config(words, positions=reach + 3)
    model = network(settings)
    replica = Replica.of(model, NEVER, Limits(slots=4, slot_tokens=reach + 3))
    [one] = answer(replica, [made.asked[8]])
    assert (one.end, list(one.token_ids)) == ("context", made.expected["8"][0][:3])
    found = generate(model, collate_selected([made.asked[8].prompt]), NEVER)
    assert found.token_ids[0, 0].tolist() == made.expected["8"][0][:3] and bool(found.cut[0])
    narrow = Replica.of(network(config(words, positions=reach)), NEVER, Limits(slots=4))
    with pytest.raises(ValueError, match=f"8: the prompt takes {reach} positions and the model kn"):
        narrow.admit([made.asked[8]])
    with pytest.raises(ValueError, match=f"The prompt takes {reach} of the model's {reach} posit"):
        known = SampleBuilder(config(words, positions=reach))
        known.prompt([picture((200, 30), 3)], "Where is it? 8")


def test_a_prompt_travels_to_the_engine_as_it_is(made: Made) -> None:
    for question in made.asked:
        there = read_sample(pack_sample(question.prompt))
        assert type(there) is SelectionSample
        for name, part in vars(question.prompt).items():
            other = getattr(there, name)
            same = torch.equal(part, other) if isinstance(part, Tensor) else part == other
            assert same and type(part) is type(other), name


def test_what_has_no_cache_is_refused(made: Made) -> None:
    settings = made.model.config
    for several in ({"tensor": 2}, {"stages": 2}):
        strategy = Strategy(path="it.json", ds={}, engine="inference", **several)
        with pytest.raises(ValueError, match=r"^it.json: HeMolmo passes its decoder twice"):
            refuse(settings, strategy)
    refuse(settings, Strategy(path="it.json", ds={}, engine="inference"))
    scaled = dataclasses.replace(settings.selection, scale_at_test=True)
    with pytest.raises(ValueError, match=r"A cache does not keep the importance of windows; set"):
        Replica.of(Molmo(dataclasses.replace(settings, selection=scaled)).eval(), NEVER)
