"""Videos from shards to samples: what the index knows of them, their tokens, and a stream that resumes."""

import dataclasses
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState

from molmo_ds import settings
from molmo_ds.cli.show_shards import main
from molmo_ds.config import RunConfig, SourceConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.order.checks import identical, replay
from molmo_ds.data.order.loader import Mixture
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.sample.annotation import read_annotation
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.data.sample.footage import footage, subtitles
from molmo_ds.data.sample.pictures.images import Crops, ImageProcessor
from molmo_ds.data.sample.pictures.layout import FRAME_END, FRAME_START, IM_PATCH
from molmo_ds.data.sample.pointed import Scene
from molmo_ds.data.show.film import drawn, marks_at
from molmo_ds.infer.load import with_crops
from molmo_ds.testing.small_videos import film, png

WORDS = Path(__file__).parents[1] / "goldens/data/G_video/tokenizer/qwen3-tiny"
VOCAB = 1024
TRACK = {
    "style": "video_point_track_per_frame",
    "question": "Track the ball.",
    "label": "ball",
    "tracks": [
        {"time": 0.0, "points": {"a": [4, 8]}},
        {"time": 0.3, "points": {"a": [5, 8]}},
        {"time": 0.5, "points": {"a": [12, 8]}},
        {"time": 2.5, "points": {"a": [47, 30]}},
    ],
}
ASK = {"style": "video_short_answer", "question": "What?", "answer": "A ball."}
SETTINGS = (
    "preset=tiny_molmo2",
    f"model.text.vocab_size={VOCAB}",
    f"model.text.embedding_size={VOCAB}",
    "model.video.max_frames=8",
    f"data.tokenizer={WORDS}",
    "data.sequence_length=256",
    "data.crops_per_sequence=20",
    "data.packing=knapsack",
    "data.pool_size=6",
    "data.prompts.message_format=chat",
    "data.prompts.system_prompt=demo_or_style_v2",
    "data.prompts.pointing_format=html-v2",
    "data.prompts.root_length=true",
    "global_batch=2",
)


def config(*more: str) -> RunConfig:
    return settings.load(None, [*SETTINGS, *more])


def sample(key: str, annotation: dict, frames: int = 20, **record: Any) -> tuple[str, dict]:
    """A video of `frames` frames, 8 a second."""
    content = {"images": ["mp4"], "annotations": [annotation], **record}
    video = film([125 * i for i in range(frames)])
    return key, {"mp4": video, "json": json.dumps(content).encode()}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve samples: videos of several lengths, with subtitles and clips, frames as pictures, a picture, a text."""
    made = [sample(f"v{i}", TRACK if i % 2 else ASK, 8 + 3 * i) for i in range(6)]
    made.append(sample("said", ASK, subtitles=[[0.0, 0.4, "hello"], [30.0, 31.0, "far"]]))
    made.append(sample("clip", ASK, clip=[1.0, 2.0]))
    pictures = {f"{i}.png": png(10 * i) for i in range(9)}
    record = {"images": list(pictures), "fps": 2.0, "annotations": [ASK]}
    made.append(("frames", pictures | {"json": json.dumps(record).encode()}))
    record = {"images": ["png"], "annotations": [ASK]}
    made.append(("picture", {"png": png(7), "json": json.dumps(record).encode()}))
    record = {"images": ["0.png", "1.png"], "annotations": [ASK]}
    two = {"0.png": png(7), "1.png": png(9)}
    made.append(("pictures", two | {"json": json.dumps(record).encode()}))
    made.append(("text", {"json": json.dumps({"annotations": [ASK]}).encode()}))
    folder = tmp_path_factory.mktemp("films")
    write_shards(made, folder)
    return str(folder)


def test_the_index_knows_size_and_duration(shards: str) -> None:
    # the last frame begins at 875 milliseconds and lasts one, as the encoder is told
    records = {(one := ShardSet(shards).record(i))["__key__"]: one for i in range(12)}
    assert records["v0"]["durations"] == [0.876] and records["v0"]["sizes"] == [(48, 32)]
    assert records["picture"]["durations"] == [0.0]


class Watched:
    """An ImageProcessor that counts how many pictures are alive while it cuts one into crops."""

    def __init__(self, images: ImageProcessor) -> None:
        self.images = images
        self.seen: list[weakref.ref] = []
        self.most = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.images, name)

    def __call__(self, picture: np.ndarray, **how: bool) -> Crops:
        self.seen.append(weakref.ref(picture))
        self.most = max(self.most, sum(one() is not None for one in self.seen))
        return self.images(picture, **how)


@pytest.mark.parametrize("kept", ["film", "pictures"])
def test_a_frame_is_forgotten_before_the_next_is_cropped(kept: str) -> None:
    builder = SampleBuilder(config())
    record: dict[str, Any] = {"images": ["mp4"], "pixels": [film([125 * i for i in range(20)])]}
    if kept == "pictures":
        record = {"images": ["0"] * 20, "pixels": [png(10 * i) for i in range(20)], "fps": 8.0}
    expected = builder.see_video(record)
    builder.images = Watched(builder.images)
    seen = builder.see_video(record)
    assert len(builder.images.seen) == len(seen.images) == 6 and builder.images.most == 1
    assert torch.equal(seen.images, expected.images) and seen.size == (48, 32)


def test_sizes_are_known_before_decoding(shards: str) -> None:
    data = ShardSet(shards)
    words = ("model.images.p_high_res=0.5", "model.images.high_res_max_crops=6")
    builder = SampleBuilder(config(*words))
    for i in range(len(data)):
        tokens, crops = builder.size(data.record(i), RandomState(i))
        made = builder.build(data.read(i), RandomState(i))
        assert (tokens, crops) == (len(made.input_ids), len(made.images))
        shown = made.input_ids == VOCAB + IM_PATCH
        assert torch.equal(made.image_positions, shown.nonzero()[:, 0])
        assert len(made.windows) == int(shown.sum())


def test_tokens_of_a_video(shards: str) -> None:
    """v1: 11 frames in 1.251 seconds, so 0, 0.5, 1.0 and the end."""
    data = ShardSet(shards)
    builder = SampleBuilder(config())
    record = next(r for i in range(12) if (r := data.read(i))["__key__"] == "v1")
    made = builder.build(record, RandomState(0))
    words = builder.tokenizer
    frame = [VOCAB + FRAME_START, *[VOCAB + IM_PATCH] * 4, VOCAB + FRAME_END]
    ids = [words.bos]
    for number, time in enumerate(("0.0", "0.5", "1.0", "1.3")):
        ids += [*words.encode(f"{' ' if number else ''}{time} "), *frame]
    assert made.input_ids[: len(ids)].tolist() == ids
    assert [round(float(crop.float().mean()) / 10) for crop in made.images] == [0, 4, 8, 10]
    # only times that are shown, in thousandths of 48 x 32 pixels; 0.3 is none, 2.5 lies after the end
    said = words.decode(made.labels[made.loss_weights > 0])
    assert said == '<tracks coords="0.0 1 083 250;0.5 1 250 250">ball</tracks>'
    visual = made.image_ids > 0
    assert int(visual.sum()) == 4 * len(frame) and set(made.image_ids.tolist()) == {0, 1}


def test_windows_of_frames_follow_each_other(shards: str) -> None:
    data = ShardSet(shards)
    record = next(r for i in range(12) if (r := data.read(i))["__key__"] == "v1")
    made = SampleBuilder(config()).build(record, RandomState(0))
    # 4 x 4 patches in windows of 3 x 3: one row and column lack before, as floor(2 / 2)
    first = [[-1, -1, -1, -1, 0, 1, -1, 4, 5], [-1, -1, -1, 2, 3, -1, 6, 7, -1]]
    assert made.windows[:2].tolist() == first
    assert torch.equal(
        made.windows[4:8], torch.where(made.windows[:4] >= 0, made.windows[:4] + 16, -1)
    )


def test_subtitles_near_a_frame_and_clips(shards: str) -> None:
    lines = [[0.0, 0.4, "hello"], [1.6, 1.9, "bye"], [30.0, 31.0, "far"]]
    assert subtitles({"subtitles": lines}, [0.0, 0.5], 1.0) == "subtitle\n0.0 - 0.4 hello\n"
    assert subtitles({"subtitles": "all of it"}, [0.0], 1.0) == "subtitle\nall of it"
    assert subtitles({"subtitles": []}, [0.0], 1.0) is None
    clip = {"images": ["mp4"], "durations": [2.5], "clip": [1.0, 2.0]}
    assert footage(clip, config().model.video).times == [0.0, 0.5, 1.0]
    folder = {"images": [f"{i}.png" for i in range(9)], "fps": 2.0}
    film = footage(folder, dataclasses.replace(config().model.video, max_frames=5))
    assert film.numbers == [0, 2, 4, 6, 8] and film.times == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("fps", "clip", "numbers"),
    [
        # 0.7 * 10 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996
        (10.0, [0.2, 0.7], [2, 6]),
        (100.0, [0.29, 0.58], [29, 57]),
        (2.0, [0.6, 0.61], [1]),
        (29.97, [1.0, 1.5], [29, 44]),
    ],
)
def test_a_clip_of_a_folder_of_frames(fps: float, clip: list[float], numbers: list[int]) -> None:
    folder = {"images": [f"{i}.png" for i in range(90)], "fps": fps, "clip": clip}
    assert footage(folder, config().model.video).numbers == numbers


@pytest.mark.parametrize("marks", ["<video>", "<image><image><image>"])
def test_a_folder_of_frames_is_one_video_or_its_pictures(marks: str) -> None:
    asked = {"style": "user_qa", "messages": [{"role": "user", "content": f"{marks} What?"}]}
    asked["messages"].append({"role": "assistant", "content": "A ball."})
    record = {"images": ["0.png", "1.png", "2.png"], "sizes": [(48, 32)] * 3, "fps": 2.0}
    tokens, crops = SampleBuilder(config()).size({**record, "annotations": [asked]}, RandomState(0))
    assert crops == 3 and tokens > 12
    with pytest.raises(BadSample, match="2 picture marks"):
        asked["messages"][0]["content"] = "<image><image> What?"
        SampleBuilder(config()).size({**record, "annotations": [asked]}, RandomState(0))


def test_what_is_pointed_at_gets_more_crops_also_by_the_sources_style() -> None:
    words = ("model.images.p_high_res=1", "model.images.high_res_max_crops=6")
    points = {"label": "it", "points": [[1, 1]]}
    record = {"images": ["png"], "sizes": [(480, 320)], "annotations": [{"style": "x", **points}]}
    named = {**record, "annotations": [{"style": "pointing", **points}]}
    drawn = {**record, "annotations": [{"one_of": [{"style": "pointing", **points}]}]}
    crops = [SampleBuilder(config(*words)).size(one, RandomState(0))[1] for one in (named, drawn)]
    source = SourceConfig(style="pointing")
    crops.append(SampleBuilder(config(*words), source=source).size(record, RandomState(0))[1])
    assert crops[0] > SampleBuilder(config(*words)).size(record, RandomState(0))[1]
    assert len(set(crops)) == 1


def test_one_of_several_pictures_has_crops_of_its_own() -> None:
    """As allenai/molmo2's max_multi_image_crops: an evaluation with 24 crops leaves 8 to each of several pictures."""
    words = ("model.images.max_crops=6", "model.images.several_max_crops=2")
    one = {"images": ["0.png"], "sizes": [(480, 320)], "annotations": [ASK]}
    two = {**one, "images": ["0.png", "1.png"], "sizes": [(480, 320)] * 2}

    def crops(record: dict, run: RunConfig, **source: object) -> int:
        made = SampleBuilder(run, source=SourceConfig(**source))
        return made.size(record, RandomState(0))[1]

    small = ("model.images.max_crops=2", "model.images.several_max_crops=null")
    assert crops(one, config(*words)) > crops(one, config(*small)) == 3
    assert crops(two, config(*words)) == crops(two, config(*small)) == 6
    assert crops(two, with_crops(config(*words), 4)) == 6
    assert crops(two, with_crops(config(*words), 1)) == 4  # nor more than a single one
    with pytest.raises(ValueError, match="with model.family=molmo one of several pictures"):
        settings.load(None, ["preset=tiny", *words])
    # a source's own number is for all its pictures
    assert crops(two, config(*words), max_crops=6) == 2 * crops(one, config(*words))
    builder = SampleBuilder(config(*words))
    picture = np.zeros((320, 480, 3), np.uint8)
    assert len(builder.see([picture, picture]).images) == 6
    sample = builder.build({**two, "pixels": [picture, picture]}, RandomState(0))
    assert len(sample.images) == 6


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"clip": [1, "2"]}, "'clip' is"),
        ({"clip": [2.5, 9]}, "shows nothing"),
        ({"fps": 0}, "'fps' is"),
        ({"num_frames": True}, "num_frames is True"),
        ({"subtitles": [["a", 1, "b"]]}, "'subtitles' holds"),
    ],
)
def test_what_a_record_must_not_say(record: dict, words: str) -> None:
    film = {"images": ["mp4"], "durations": [2.0], "sizes": [(48, 32)], "annotations": [ASK]}
    with pytest.raises(BadSample, match=words):
        SampleBuilder(config()).size(film | record, RandomState(0))


def test_an_index_without_durations_is_refused() -> None:
    film = {"images": ["mp4"], "sizes": [(0, 0)], "annotations": [ASK], "__key__": "k"}
    with pytest.raises(ValueError, match="index its folder again") as error:
        SampleBuilder(config()).size(film, RandomState(0))
    assert not isinstance(error.value, BadSample)


def test_weight_of_a_source(shards: str) -> None:
    weights = []
    for more in ((), ("data.sources.a.token_weight=0.2",)):
        one = config(f"data.sources.a.path={shards}", "data.num_workers=0", *more)
        batches, _ = replay(one, Mixture.open(one), 1, 0, 1)
        found = batches[0][0].loss_weights
        weights.append(set(np.round(found[found > 0].tolist(), 4).tolist()))
    assert weights[1] == {0.2} and 0.2 not in weights[0]


def test_a_packed_stream_of_videos_resumes_exactly(shards: str) -> None:
    """On one rank and on two; the lanes hold text, pictures and videos."""
    one = config(f"data.sources.a.path={shards}", "data.num_workers=0")
    mixture = Mixture.open(one)
    whole, _ = replay(one, mixture, 1, 0, 5)
    first, states = replay(one, mixture, 1, 0, 2)
    states = json.loads(
        json.dumps(states), object_hook=lambda d: {_key(k): v for k, v in d.items()}
    )
    rest, _ = replay(one, mixture, 2, 0, 3, states, start_step=2)
    assert identical(whole[:2], first)
    flat = [[batch for step in part for batch in step] for part in (whole[2:], rest)]
    assert len(flat[0]) == len(flat[1])
    for a, b in zip(*flat):
        assert all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors()))


def _key(key: str) -> int | str:
    return int(key) if key.isdigit() else key


def test_the_page_shows_frames_with_times_and_tracks(shards: str, tmp_path: Path) -> None:
    words = [word for word in SETTINGS if not word.startswith("global_batch")]
    out = tmp_path / "page.html"
    arguments = [shards, str(out), "--sequences", "14", "--documents", "40"]
    main([*arguments, "--tokenizer", str(WORDS), *words])
    page = out.read_text()
    assert page.count('class="film"') >= 6 and "<figcaption>0.5 s</figcaption>" in page
    assert "hello" in page and "far" not in page
    scene = Scene([(48, 32)], [0.0, 0.5])
    marks = list(marks_at(read_annotation(TRACK), 0.5, scene))
    assert marks == [("a", 0.25, 0.25)]
    plain = np.zeros((32, 48, 3), np.uint8)
    ringed = drawn(plain, marks)
    assert ringed.shape == plain.shape and ringed[:20, :24].any() and not ringed[:, 40:].any()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.video.pooling_size=5"], "video.pooling_size is 5; it must be at most 4"),
        (["model.connector.pooling=stack"], "or null"),
        (["model.images.p_high_res=0.5"], "it must be 25 or more"),
    ],
)
def test_settings_that_do_not_fit_together(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(*words)
