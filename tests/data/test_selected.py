"""HeMolmo's samples: tokens, positions and windows of a picture by hand, its row in a batch, what is left out."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from PIL import Image

from molmo_ds import presets
from molmo_ds.batch import SelectionBatch
from molmo_ds.config import DataConfig, PromptConfig, RunConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.order.selected import collate_selected
from molmo_ds.data.sample import selected
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.data.sample.pictures.layout import Geometry

WORDS = Path(__file__).parents[1] / "goldens/data/G_video/tokenizer/qwen3-tiny"
START, END, PATCH, COLUMN, LOW = 0, 1, 2, 3, 5  # counted from vocab_size
VOCAB = 1024
CAPTION = {"style": "long_caption", "text": "A door."}


def config(picks: int = 8, **prompts: object) -> RunConfig:
    """Crops of 4 x 4 patches, which share a patch on each side: a tiling of 1 x 2 has 4 x 6 patches, 2 x 3 windows."""
    model = presets.get("tiny_hemolmo")
    text = dataclasses.replace(model.text, vocab_size=VOCAB, embedding_size=VOCAB)
    selection = dataclasses.replace(model.selection, picks=picks)
    model = dataclasses.replace(model, text=text, selection=selection)
    told = {"system_prompt": "none", "prompt_templates": "none", "message_format": "none"}
    prompt = PromptConfig(
        **{**told, "always_start_with_space": False, "image_last": True, **prompts}
    )
    data = DataConfig(tokenizer=str(WORDS), prompts=prompt, packing="to_max", sequence_length=256)
    return RunConfig(model=model, data=data)


def record(size: tuple[int, int] | None, *annotations: dict) -> dict:
    made = {"__key__": "k", "images": [], "sizes": [], "annotations": list(annotations)}
    if size is None:
        return made
    stream = io.BytesIO()
    pixels = RandomState(0).randint(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return made | {"images": ["png"], "sizes": [size], "pixels": [stream.getvalue()]}


def test_a_picture_by_hand() -> None:
    """A picture of 80 x 40 is 1 x 2 crops: 4 low windows, and 2 x 3 high ones of which 4 are shown."""
    builder = SampleBuilder(config(picks=4))
    asked = {"style": "vqa2", "question": "how?", "answer": "so"}
    made = builder.build(record((80, 40), asked), RandomState(0))
    words = builder.tokenizer
    question = [words.bos, *words.encode("how?")]
    row = [PATCH, PATCH, COLUMN]  # <im_low> has the embedding of <im_patch>
    picture = [START, *row, *row, END, START, *[PATCH] * 4, COLUMN, COLUMN, END]
    answer = words.encode(" so")
    ids = [*question, *(VOCAB + token for token in picture), *answer]
    assert made.input_ids.tolist() == ids
    at = len(question)
    assert made.low_tokens.tolist() == [at + i for i in (1, 2, 4, 5)]
    assert made.picked_tokens.tolist() == [at + i for i in (9, 10, 11, 12)]
    assert (made.query_token, made.low_length) == (at + 6, at + 8)
    # all picks begin behind <im_start>; columns end rows of 3 windows; the end is behind both rows
    high = [8, 9, 9, 9, 9, 8 + 4, 8 + 8, 8 + 6 + 3 + 1]
    places = [*range(at), *(at + place for place in [*range(8), *high])]
    places += [at + 8 + 6 + 3 + 2 + i for i in range(len(answer))]
    assert made.position_ids.tolist() == places
    assert made.candidate_places.tolist() == [0, 1, 2, 4, 5, 6]
    # crop 0 whole; of crops 1 and 2 the columns 0 to 2 and 1 to 3: the middle window joins both
    assert made.windows[0].tolist() == [0, 1, 4, 5] and len(made.windows) == 4 + 6
    assert made.windows[4:7].tolist() == [[16, 17, 20, 21], [18, 33, 22, 37], [34, 35, 38, 39]]
    assert made.image_positions.tolist() == [*made.low_tokens.tolist(), *[-1] * 6]
    assert len(made.images) == 3
    learnt = made.loss_weights > 0
    assert made.labels[learnt].tolist() == [*answer, words.eos]
    # each resolution is a picture of its own, text is none
    both = [*[0] * at, *[2] * 8, *[3] * 8, *[0] * len(answer)]
    assert made.image_ids.tolist() == both


def test_scores_are_spread_bilinearly() -> None:
    """To a grid as fine as the scores each goes to one window; to 2 x 3 windows by the shares of its rows, columns."""
    same = selected.shares(2, (4, 4))
    order = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]  # row, column, then inside
    assert same.argmax(1).tolist() == order and torch.equal(same.sum(0), torch.ones(16))
    spread = selected.shares(2, (2, 3))
    # centres of 2 rows lie between scores 0 and 1, and 2 and 3; of 3 columns at 1/6, 1.5 and 2 + 5/6
    columns = torch.tensor([[5 / 6, 1 / 6, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 1 / 6, 5 / 6]])
    rows = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    want = torch.einsum("iy,jx->yxij", rows, columns).reshape(2, 2, 2, 2, 6).transpose(1, 2)
    torch.testing.assert_close(spread, want.reshape(16, 6))


def test_fewer_windows_than_picks_are_all_shown() -> None:
    """And a picture of one crop has 4 windows, of two 6."""
    layout = Geometry.of(config().model).layout(40, 80)
    assert (layout.tokens == PATCH).sum() == 6 and layout.high == (2, 3)
    wide = dataclasses.replace(config().model.images, use_col_tokens=False)
    bare = Geometry.of(dataclasses.replace(config().model, images=wide)).layout(40, 40)
    assert bare.tokens.tolist() == [START, *[LOW] * 4, END, START, *[PATCH] * 4, END]
    assert selected.token_places(bare).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 6 + 5]
    assert selected.window_places(bare).tolist() == [0, 1, 2, 3]


def test_rows_of_a_batch() -> None:
    """A picture of 6 windows, a text, and one of 4; indices count the windows of all rows."""
    builder = SampleBuilder(config(picks=5))
    sizes = [(80, 40), None, (40, 40)]
    samples = [builder.build(record(size, CAPTION), RandomState(0)) for size in sizes]
    for size, sample in zip(sizes, samples):
        sized = builder.size(record(size, CAPTION), RandomState(0))
        assert sized == (len(sample.input_ids), len(sample.images))
    batch = collate_selected(samples)
    assert isinstance(batch, SelectionBatch) and len(batch.windows) == 10 + 0 + 8
    assert batch.candidates.tolist() == [
        [4, 5, 6, 7, 8, 9],
        [-1] * 6,
        [14, 15, 16, 17, -1, -1],
    ]
    assert [int((row >= 0).sum()) for row in batch.picked_tokens] == [5, 0, 4]
    assert batch.picked_tokens.shape == (3, 5) and batch.low_tokens[1].tolist() == [-1] * 4
    assert batch.low_to_high.shape == (3, 16, 6) and not batch.low_to_high[2, :, 4:].any()
    assert int(batch.low_length) == samples[0].low_length
    assert batch.query_tokens.tolist() == [samples[0].query_token, 0, samples[2].query_token]


def test_what_is_left_out() -> None:
    builder = SampleBuilder(config())
    two = record((40, 40), CAPTION)
    with pytest.raises(BadSample, match="has one annotation, not 2"):
        builder.build(record((40, 40), CAPTION, CAPTION), RandomState(0))
    several = two | {"images": ["png"] * 2, "sizes": [(40, 40)] * 2, "pixels": two["pixels"] * 2}
    with pytest.raises(BadSample, match="HeMolmo sees one picture"):
        builder.see([np.zeros((40, 80, 3), np.uint8)] * 2)
    with pytest.raises(
        BadSample, match="a low and a high resolution; do not ask for the low alone"
    ):
        builder.see([np.zeros((40, 80, 3), np.uint8)], [0])
    with pytest.raises(BadSample, match="HeMolmo sees one picture"):
        builder.see_video({"images": ["mp4"], "pixels": [b""]})
    with pytest.raises(BadSample, match="HeMolmo sees one picture"):
        builder.build(several, RandomState(0))
    branches = SampleBuilder(config(image_last=False)).build(
        record((40, 40), CAPTION, CAPTION | {"text": "A longer door."}), RandomState(0)
    )
    begin = branches.position_ids[branches.branch_ids == 2][0]
    assert begin == branches.position_ids[branches.branch_ids == 1][0]
    assert begin == branches.position_ids[branches.branch_ids == 0].max() + 1
