"""Records to Samples: the tree, its labels and weights, image positions, sizes ahead of decoding, cutting."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import RandomState
from PIL import Image

from molmo_ds import architecture as a
from molmo_ds import config as c
from molmo_ds.batch import PER_CROP, PER_TOKEN, PER_WINDOW, Sample, windows_of
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample import footage as footage_module
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.data.sample.pictures.layout import IM_PATCH
from molmo_ds.data.tokens import train_tokenizer

torch.set_num_threads(1)
VOCAB = 400
CAPTION = {"style": "transcript", "text": "A blue bin beside a door. The door is shut."}
COLOUR = {"style": "vqa2", "question": "Which colour is the bin?", "answer": "blue"}
CHAT = {"style": "synthetic_qa", "messages": ["Is it open?", "No, shut.", "And the bin?", "Open."]}
PICTURES = {(70, 50): 0, (150, 60): 1, (60, 150): 2, (56, 56): 3}  # (width, height)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([CAPTION["text"], COLOUR["question"], "User: Assistant: vqa2:"] * 9, 330, path)
    return path


@pytest.fixture(scope="module")
def builder(tokenizer: Path) -> SampleBuilder:
    return make(tokenizer)


def make(
    tokenizer: Path, sequence_length: int = 600, images: dict | None = None, **prompts: object
) -> SampleBuilder:
    """Crops of 56 pixels, at most 3 and the global view; no shuffling unless asked."""
    crops = {"max_crops": 3, "overlap_margins": (1, 1), **(images or {})}
    model = a.MolmoConfig(
        text=a.TextConfig(vocab_size=VOCAB, embedding_size=VOCAB),
        vision=a.VisionConfig(image_size=56),
        images=a.ImageConfig(**crops),
    )
    prompt = c.PromptConfig(**{"shuffle_messages": False, **prompts})
    data = c.DataConfig(tokenizer=str(tokenizer), prompts=prompt, sequence_length=sequence_length)
    return SampleBuilder(c.RunConfig(model=model, data=data))


def picture(size: tuple[int, int]) -> bytes:
    pixels = RandomState(PICTURES[size]).randint(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def record(annotations: list[dict], *sizes: tuple[int, int], **more: object) -> dict:
    parts = [f"{i}.png" for i in range(len(sizes))]
    pixels = [picture(size) for size in sizes]
    return {
        "__key__": "k",
        "images": parts,
        "sizes": list(sizes),
        "pixels": pixels,
        "annotations": annotations,
        **more,
    }


def branch(sample: Sample, number: int) -> torch.Tensor:
    return torch.nonzero(sample.branch_ids == number)[:, 0]


def test_one_conversation(builder: SampleBuilder) -> None:
    """Spelled out: BOS, picture, user, assistant; the answer and its end are learnt, and nothing else."""
    got = builder.build(record([CHAT], (70, 50)), RandomState(0))
    words = builder.tokenizer
    image = (builder.images.layout(70, 50).tokens + VOCAB).tolist()
    ids = [words.bos, *image]
    learnt = [0] * len(ids)
    for text, answer in [(" User: synthetic_qa: Is it open? Assistant:", 0), (" No, shut.", 1)] + [
        (" User: And the bin? Assistant:", 0),
        (" Open.", 1),
    ]:
        part = words.encode(text) + [words.eos] * answer
        ids += part
        learnt += [answer] * len(part)
    assert got.input_ids.tolist() == ids[:-1]
    assert got.labels.tolist() == ids[1:]
    assert got.loss_weights.tolist() == learnt[1:]
    assert got.position_ids.tolist() == list(range(len(ids) - 1))
    assert got.branch_ids.tolist() == [0] * (1 + len(image)) + [1] * (len(ids) - 2 - len(image))
    kinds = {
        "input_ids": torch.int64,
        "labels": torch.int64,
        "loss_weights": torch.float32,
        "position_ids": torch.int64,
        "branch_ids": torch.int32,
        "image_ids": torch.int32,
        "images": torch.uint8,
        "image_masks": torch.float32,
        "windows": torch.int64,
        "image_positions": torch.int64,
    }
    assert {name: getattr(got, name).dtype for name in kinds} == kinds


def test_every_branch_is_a_sample_of_its_own(builder: SampleBuilder) -> None:
    """Prefix and one branch of a tree say the same as a sample with that annotation alone, but for the weights."""
    annotations = [CAPTION, COLOUR, CHAT]
    tree = builder.build(record(annotations, (150, 60)), RandomState(0))
    prefix = branch(tree, 0)
    for number, annotation in enumerate(annotations, start=1):
        alone = builder.build(record([annotation], (150, 60)), RandomState(0))
        where = torch.cat([prefix, branch(tree, number)])
        for name in ("input_ids", "position_ids"):
            assert torch.equal(getattr(tree, name)[where], getattr(alone, name)), name
        torch.testing.assert_close(tree.loss_weights[where], alone.loss_weights / 3**0.5)
        learnt = alone.loss_weights > 0
        assert torch.equal(tree.labels[where][learnt], alone.labels[learnt])
        assert torch.equal(tree.image_positions, alone.image_positions)
    assert len(tree.input_ids) == len(prefix) + sum(len(branch(tree, i)) for i in (1, 2, 3))


def test_weights_of_annotations(tokenizer: Path) -> None:
    plain = make(tokenizer, root_subsegments=False)
    got = plain.build(record([{**CAPTION, "weight": 0.25}, COLOUR], (70, 50)), RandomState(0))
    for number, weight in ((1, 0.25), (2, 1.0)):
        weights = got.loss_weights[branch(got, number)]
        assert set(weights.tolist()) == {0.0, weight}


def test_text_only(builder: SampleBuilder) -> None:
    got = builder.build(record([COLOUR]), RandomState(0))
    words = builder.tokenizer
    ids = [
        words.bos,
        *words.encode(" User: vqa2: Which colour is the bin? Assistant:"),
        *words.encode(" blue"),
    ]
    assert got.input_ids.tolist() == ids and got.labels.tolist() == [*ids[1:], words.eos]
    assert (
        got.images.shape == (0, 56, 56, 3)
        and got.image_masks.shape == (0, 16)
        and got.image_positions.shape == (0,)
        and got.windows.shape == (0, 4)
    )
    # without "pixels", as an index gives it
    nothing = {"annotations": [COLOUR], "images": [], "sizes": []}
    assert builder.build(nothing, RandomState(0)).input_ids.tolist() == ids


def of_crops(sample: Sample) -> torch.Tensor:
    """int64 [n, 4], the token of each window of each crop, -1 = a margin that another crop shows."""
    crops = len(sample.images)
    whole = windows_of(crops, 4, 2).tolist()
    places = torch.full((len(whole),), -1)
    for window, place in zip(sample.windows.tolist(), sample.image_positions.tolist()):
        places[whole.index(window)] = place
    return places.view(crops, 4)


def test_several_pictures(builder: SampleBuilder) -> None:
    """Each picture's crops point at its own tokens, in order; a later picture is shifted by the earlier ones."""
    sizes = [(70, 50), (150, 60), (60, 150)]
    got = builder.build(record([COLOUR, CAPTION], *sizes), RandomState(0))
    crops = 0
    token = 1
    for size in sizes:
        alone = builder.images(np.asarray(Image.open(io.BytesIO(picture(size)))))
        mine = slice(crops, crops + alone.layout.crops)
        assert torch.equal(got.images[mine], alone.images) and torch.equal(
            got.image_masks[mine], alone.masks
        )
        want = torch.from_numpy(alone.layout.positions)
        places = of_crops(got)[mine]
        assert torch.equal(places, torch.where(want >= 0, want + token, -1))
        crops = crops + alone.layout.crops
        token = token + len(alone.layout.tokens)
    assert crops == len(got.images) and token == (got.branch_ids == 0).sum()
    places = got.image_positions[got.image_positions >= 0]
    assert (
        sorted(places.tolist()) == torch.nonzero(got.input_ids == VOCAB + IM_PATCH)[:, 0].tolist()
    )


def test_pictures_inside_a_text(builder: SampleBuilder) -> None:
    ask = {"style": "demo", "question": "Is <|image|> like <|image|>?", "text": "No, <|image|>."}
    got = builder.build(record([ask], (70, 50), (150, 60)), RandomState(0))
    words = builder.tokenizer
    layouts = [builder.images.layout(70, 50), builder.images.layout(150, 60)]
    first, second = ((layout.tokens + VOCAB).tolist() for layout in layouts)
    user = [words.encode(part) for part in (" User: Is ", " like ", "? Assistant:")]
    answer = words.encode(" No, <|image|>.")  # in an answer it is plain text
    ids = [words.bos, *user[0], *first, *user[1], *second, *user[2], *answer]
    assert got.input_ids.tolist() == ids and got.branch_ids.tolist() == [0] + [1] * (len(ids) - 1)
    assert (got.loss_weights > 0).sum() == len(answer) + 1
    start = 1 + len(user[0]) + len(first) + len(user[1])
    want = torch.from_numpy(layouts[1].positions)
    assert torch.equal(
        of_crops(got)[layouts[0].crops :],
        torch.where(want >= 0, want + start, -1),
    )
    for sizes, words_of_error in (([(70, 50)], "more pictures"), ([(70, 50)] * 3, "2 of 3")):
        with pytest.raises(BadSample, match=words_of_error):
            builder.build(record([ask], *sizes), RandomState(0))
    with pytest.raises(BadSample, match="one annotation"):
        builder.build(record([ask, COLOUR], (70, 50), (150, 60)), RandomState(0))


annotations = st.lists(
    st.sampled_from(
        [
            CAPTION,
            COLOUR,
            CHAT,
            {"style": "pointing", "label": "bin", "points": [[3, 4], [30, 20]]},
            {"style": "point_count", "label": "bin", "points": [[3, 4]], "point_scale": 100},
            {
                "style": "vqa2",
                "question": "Why?",
                "answers": ["so", "no", "because it was raining"],
            },
            {"style": "long_caption", "text": CAPTION["text"] * 4},
        ]
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    annotations,
    st.lists(st.sampled_from(list(PICTURES)), min_size=1, max_size=3),
    st.integers(0, 999),
    st.booleans(),
)
def test_size_is_what_build_makes(
    builder: SampleBuilder,
    asked: list[dict],
    sizes: list[tuple[int, int]],
    seed: int,
    shuffle: bool,
) -> None:
    """Random trees, pictures and draws; some are longer than the sequence and cut."""
    maker = make(builder.tokenizer.folder, sequence_length=200, shuffle_messages=shuffle)
    given_record = record(asked, *sizes)
    meta = {k: v for k, v in given_record.items() if k != "pixels"}
    try:
        tokens, crops = maker.size(meta, RandomState(seed))
    except BadSample:
        with pytest.raises(BadSample):
            maker.build(given_record, RandomState(seed))
        return
    got = maker.build(given_record, RandomState(seed))
    assert (tokens, crops) == (len(got.input_ids), len(got.images)) and tokens <= 200
    assert got.image_positions.max() < tokens
    of_tokens = [name for name in PER_TOKEN if name != "document_ids"]
    assert {len(getattr(got, name)) for name in of_tokens} == {tokens}
    assert {len(getattr(got, name)) for name in PER_CROP} == {crops}
    shown = int((got.input_ids == VOCAB + IM_PATCH).sum())
    assert {len(getattr(got, name)) for name in PER_WINDOW} == {shown}
    again = maker.build(given_record, RandomState(seed))
    assert all(
        torch.equal(getattr(got, f.name), getattr(again, f.name)) for f in dataclasses.fields(got)
    )


def test_cutting(tokenizer: Path, builder: SampleBuilder) -> None:
    whole = builder.build(record([CAPTION, COLOUR], (150, 60)), RandomState(0))
    prefix = int((whole.branch_ids == 0).sum())
    length = len(whole.input_ids)
    learnt = int(torch.nonzero(whole.loss_weights)[0]) + 1
    for limit in (learnt, length - 1, length):
        cut = make(tokenizer, limit).build(record([CAPTION, COLOUR], (150, 60)), RandomState(0))
        for f in dataclasses.fields(cut)[:5]:
            assert torch.equal(getattr(cut, f.name), getattr(whole, f.name)[:limit]), f.name
        assert torch.equal(cut.images, whole.images)
    for limit, words in (
        (prefix, "no room for text"),
        (prefix // 2, "no room for text"),
        (learnt - 1, "nothing is left"),
    ):
        with pytest.raises(BadSample, match=words):
            make(tokenizer, limit).size(record([CAPTION, COLOUR], (150, 60)), RandomState(0))


def test_points_in_pixels_use_the_first_picture(tokenizer: Path) -> None:
    point = {"style": "pointing", "label": "bin", "points": [[15, 30]]}
    maker = make(tokenizer, message_format="none", system_prompt="none", prompt_templates="none")
    got = maker.build(record([point], (150, 60), (70, 50)), RandomState(0))
    text = maker.tokenizer.decode(got.labels[got.loss_weights > 0])
    assert text == ' <point x="10.0" y="50.0" alt="bin">bin</point>'


def test_video(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are pictures of one resized crop each, in order."""
    frames = [np.full((40, 60, 3), 40 * i, np.uint8) for i in range(5)]
    monkeypatch.setattr(
        footage_module, "each_frame", lambda data, times, clip: frames[: len(times)]
    )
    maker = make(tokenizer, images={"resize": "siglip"})
    film = {
        "annotations": [COLOUR],
        "images": ["mp4"],
        "sizes": [(60, 40)],
        "durations": [2.0],
        "pixels": [b""],
        "num_frames": 3,
    }
    got = maker.build(film, RandomState(0))
    assert maker.size(film, RandomState(0)) == (len(got.input_ids), 3) and got.images.shape == (
        3,
        56,
        56,
        3,
    )
    assert got.images.float().mean((1, 2, 3)).tolist() == [0, 40, 80]
    assert (got.branch_ids == 0).sum() == 1 + 3 * len(maker.images.layout(1, 1, frame=True).tokens)
    del film["num_frames"]
    assert maker.size(film, RandomState(0))[1] == 8
    with pytest.raises(BadSample, match="num_frames"):
        maker.size({**film, "num_frames": 0}, RandomState(0))
    with pytest.raises(BadSample, match="one video"):
        maker.size({**film, "images": ["0.mp4", "1.jpg"]}, RandomState(0))


def test_exact_mode(tokenizer: Path) -> None:
    maker = make(tokenizer, images={"exact": True})
    got = maker.build(record([COLOUR], (70, 50), (56, 56)), RandomState(0))
    assert got.images.dtype == torch.float32 and got.images.shape[1:] == (16, 14 * 14 * 3)
    assert maker.build(record([COLOUR]), RandomState(0)).images.shape == (0, 16, 14 * 14 * 3)


def test_bad_pictures_and_a_stale_index(builder: SampleBuilder) -> None:
    broken = record([COLOUR], (70, 50))
    broken["pixels"] = [broken["pixels"][0][:200]]
    with pytest.raises(BadSample, match="cannot be decoded"):
        builder.build(broken, RandomState(0))
    stale = {**record([COLOUR], (70, 50)), "sizes": [(71, 50)]}
    with pytest.raises(ValueError, match="index them again") as error:
        builder.build(stale, RandomState(0))
    assert not isinstance(error.value, BadSample)  # not to be skipped: the whole index may be wrong
    with pytest.raises(BadSample, match="too narrow"):  # known before decoding
        builder.size(
            {"images": ["jpg"], "sizes": [(1000, 1)], "annotations": [COLOUR]}, RandomState(0)
        )
    with pytest.raises(BadSample, match="no annotations"):
        builder.size({"images": [], "sizes": []}, RandomState(0))


def test_prompts_are_the_start_of_what_was_trained(builder: SampleBuilder) -> None:
    for annotation in (COLOUR, CHAT):
        trained = builder.build(record([annotation], (150, 60)), RandomState(0))
        asked = builder.prompt([picture((150, 60))], annotation)
        last = len(asked.input_ids)
        assert (
            torch.equal(asked.input_ids, trained.input_ids[:last])
            and trained.loss_weights[last - 1] > 0
        )
        assert torch.equal(asked.position_ids, trained.position_ids[:last])
        assert torch.equal(asked.branch_ids, trained.branch_ids[:last])
        assert torch.equal(asked.images, trained.images) and torch.equal(
            asked.image_positions, trained.image_positions
        )
        assert not asked.loss_weights.any() and not asked.labels.any()


def test_prompts_of_a_user(builder: SampleBuilder) -> None:
    words = builder.tokenizer
    image = Image.open(io.BytesIO(picture((70, 50))))
    text = builder.prompt([image], "Which colour?").input_ids
    assert words.decode(text) == " User: Which colour? Assistant:"
    assert torch.equal(builder.prompt([np.asarray(image)], "Which colour?").input_ids, text)
    chat = builder.prompt([image], ["Hi", "Hello.", "Which colour?"], style="vqa2").input_ids
    # decoding stops at the first end
    assert words.decode(chat[:-1]) == " User: vqa2: Hi Assistant: Hello."
    assert len(builder.prompt([], "No picture").images) == 0
    # a demo style, then named in the prompt
    named = [i for i in range(60) if RandomState(i).random() <= 0.1]
    for seed in (0, *named[:2], 1):
        text = builder.prompt([], "Where?", "user_qa", RandomState(seed)).input_ids
        assert (
            words.decode(text) == f" User: {'user_qa: ' if seed in named else ''}Where? Assistant:"
        )
    with pytest.raises(ValueError, match="make it shorter"):
        builder.prompt([image], "on and on " * 4096)


def test_fingerprint(tokenizer: Path, builder: SampleBuilder, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer"
    train_tokenizer(["quite other words"] * 9, 300, other)
    prints = [
        builder.fingerprint,
        make(other).fingerprint,
        make(tokenizer, sequence_length=599).fingerprint,
        make(tokenizer, images={"max_crops": 2}).fingerprint,
        make(tokenizer, system_prompt="style").fingerprint,
    ]
    assert len(set(prints)) == 5 and make(tokenizer).fingerprint == builder.fingerprint
