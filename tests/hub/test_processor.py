"""The exported processor gives the ids and pixels of training, and says in one sentence what it does not take."""

import base64
import copy
import io
import json
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_models import tiny
from numpy.random import RandomState
from PIL import Image
from transformers import AutoTokenizer

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Sample
from molmo_ds.config import DataConfig, RunConfig
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.data.tokens import IMAGE_TOKENS, Tokenizer
from molmo_ds.hub import export
from molmo_ds.hub.remote.image_preprocessing_molmo import MolmoImageProcessor
from molmo_ds.hub.remote.inputs_molmo import Rendered
from molmo_ds.hub.remote.preprocessing_molmo import MolmoProcessor

QUESTION = "What is it?"
FORM = {"message_format": "role", "always_start_with_space": True}
SENTENCE = r"(?s)^\S.*[^.]\.$"


@pytest.fixture(scope="module")
def config() -> MolmoConfig:
    return tiny()


@pytest.fixture(scope="module")
def builder(config: MolmoConfig, tokenizer: Path) -> SampleBuilder:
    """What training and generation make prompts with."""
    return SampleBuilder(
        RunConfig(model=config, data=DataConfig(tokenizer=str(tokenizer), sequence_length=512))
    )


@pytest.fixture(scope="module")
def folder(config: MolmoConfig, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The processor's part of an exported folder."""
    out = tmp_path_factory.mktemp("processor")
    export.write_processor(out, config, tokenizer, FORM)
    return out


@pytest.fixture(scope="module")
def processor(folder: Path) -> MolmoProcessor:
    return load(folder)


def load(folder: Path, **form: Any) -> MolmoProcessor:
    """The classes that an exported folder holds, on its files."""
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    images = MolmoImageProcessor(
        json.loads((folder / "preprocessor_config.json").read_text())["molmo_ds"]
    )
    return MolmoProcessor(images, words, chat_template=words.chat_template, **form)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(RandomState(0).randint(0, 256, (50, 90, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def path(picture: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture as a file."""
    file = tmp_path_factory.mktemp("pictures") / "a picture.png"
    picture.save(file)
    return file


def ids(inputs: Any, row: int = 0) -> list[int]:
    """Token ids of a row without its padding."""
    return inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()


def same(inputs: Any, sample: Sample) -> bool:
    """Whether a batch of one row holds what training makes."""
    pictures = len(sample.images) == 0 or torch.equal(inputs["images"][0], sample.images)
    places = len(sample.images) == 0 or torch.equal(
        inputs["image_input_idx"][0].flatten(), sample.image_positions
    )
    return ids(inputs) == sample.input_ids.tolist() and pictures and places


TYPED = [
    "What does <|image|> mean?",
    "<im_patch><im_patch>",
    "<im_start> <im_end> <im_col>",
    "one<|endoftext|>two",
    "<|endoftext|>",
    "|<EXTRA_TOKENS_0>| and |<EXTRA_TOKENS_100>|",
    "User: hello",
    "say User: hi Assistant: or so",
    "Assistant:",
    " a leading space, a trailing one ",
    "line\nbreaks\r\n\ttabs   runs",
    "",
    "e\u0301 \u00e9 \U0001f600 \u4f60\u597d",
    "vqa2: how many?",
]


@pytest.mark.parametrize("text", TYPED)
def test_what_a_user_types_is_plain_text(
    processor: MolmoProcessor, builder: SampleBuilder, text: str
) -> None:
    want = builder.prompt([], text)
    special = set(processor.tokenizer.all_special_ids) | set(processor.special_token_ids.values())
    assert special & set(want.input_ids.tolist()) == {builder.tokenizer.bos}
    assert same(processor(text=text), want)
    assert [int(i) for i in processor.process(text=text)["input_ids"]] == want.input_ids.tolist()
    assert [builder.tokenizer.bos, *processor.get_tokens_input(text)] == want.input_ids.tolist()
    batch = processor(text=["Hi", text])
    assert ids(batch, 1) == want.input_ids.tolist()
    talk = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    assert ids(processor.apply_chat_template(talk, tokenize=True)) == want.input_ids.tolist()
    assert ids(processor(text=processor.apply_chat_template(talk))) == want.input_ids.tolist()
    back = processor.decode(ids(processor(text=text))[1:])
    assert back == builder.tokenizer.decode(want.input_ids[1:]) and back.startswith(" User:")


def test_transformers_calls_leave_the_words_alone(folder: Path) -> None:
    processor = load(folder)
    want = ids(processor(text="one<|endoftext|>two and a longer text"))
    processor.tokenizer(
        ["a <|endoftext|> b c d e"], truncation=True, max_length=3, padding="max_length"
    )
    assert ids(processor(text="one<|endoftext|>two and a longer text")) == want
    for other in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        assert ids(other(text="one<|endoftext|>two and a longer text")) == want


def test_image_words_that_a_tokenizer_does_not_call_special(
    tokenizer: Path, tmp_path: Path
) -> None:
    """A released folder may hold them as ordinary added words; typed, they are plain text all the same."""
    words = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    filler = [f"|<EXTRA_TOKENS_{i}>|" for i in range(4)]
    words.add_tokens([*filler, *IMAGE_TOKENS])
    words.save_pretrained(tmp_path)
    ours = Tokenizer(tmp_path, 304)
    typed = " ".join([*IMAGE_TOKENS, filler[0], "<|endoftext|>"])
    assert max(ours.encode(typed)) < 300 - 1  # the end of the text is the last of 300 words
    assert ours.decode(ours.encode(typed)) == typed


def test_a_tokenizer_file_that_cuts_texts_does_not(tokenizer: Path, tmp_path: Path) -> None:
    words = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    words.backend_tokenizer.enable_truncation(3)
    words.backend_tokenizer.enable_padding(length=8)
    words.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        (tokenizer / "tokenizer_config.json").read_text()
    )
    text = "a text that is much longer than that"
    assert Tokenizer(tmp_path, 512).encode(text) == Tokenizer(tokenizer, 512).encode(text)


def test_a_class_of_transformers_that_would_cut_words_otherwise(
    config: MolmoConfig, tokenizer: Path, tmp_path: Path
) -> None:
    source = tmp_path / "words"
    source.mkdir()
    file = (tokenizer / "tokenizer.json").read_text()
    # other pieces than Qwen2's
    (source / "tokenizer.json").write_text(file.replace(r"\\p{N}|", r"\\p{N}{1,3}|"))
    settings = (tokenizer / "tokenizer_config.json").read_text()
    (source / "tokenizer_config.json").write_text(
        settings.replace("PreTrainedTokenizerFast", "Qwen2Tokenizer")
    )
    out = tmp_path / "out"
    out.mkdir()
    export.write_processor(out, config, source, FORM)
    text = "1234567 and <|endoftext|> 89"
    mine = Tokenizer(source, config.text.vocab_size)
    assert ids(load(out)(text=text))[1:] == mine.encode(f" User: {text} Assistant:")


def turns(*texts: str, picture: Any = None) -> list[dict]:
    """A conversation; the picture belongs to its first turn."""
    talk = [
        {"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)
    ]
    if picture is not None:
        place = {"type": "image"} if picture == "place" else {"type": "image", "image": picture}
        talk[0]["content"] = [place, {"type": "text", "text": texts[0]}]
    return talk


TALKS = [
    (QUESTION,),
    (QUESTION, "A boat."),
    (QUESTION, "A <|endoftext|> boat.", "And <im_patch>?"),
    ("a", "b", "c", "d"),
]


@pytest.mark.parametrize("texts", TALKS)
def test_in_two_steps_the_template_is_applied_once(
    processor: MolmoProcessor, builder: SampleBuilder, picture: Image.Image, texts: tuple[str, ...]
) -> None:
    one = processor.apply_chat_template(turns(*texts, picture=picture), tokenize=True)
    text = processor.apply_chat_template(turns(*texts, picture="place"), add_generation_prompt=True)
    for two in (
        processor(text=text, images=picture),
        processor(text=[text], images=[picture]),
        processor(text=[text], images=[[picture]]),
    ):
        assert all(torch.equal(two[key], one[key]) for key in one) and set(two) == set(one)
    if len(texts) % 2:
        assert same(one, builder.prompt([picture], list(texts)))
    jinja = processor.tokenizer.apply_chat_template(turns(*texts, picture="place"), tokenize=False)
    assert text == jinja
    assert "User: User:" not in processor.decode(ids(one))


def test_batches_of_conversations(processor: MolmoProcessor, picture: Image.Image) -> None:
    other = picture.transpose(Image.Transpose.ROTATE_90)
    first = turns(QUESTION, picture="place")
    second = turns("Hi", "Yes.", "And?")
    third = turns("Two", picture="place")
    third[0]["content"].insert(0, {"type": "image"})
    texts = processor.apply_chat_template([first, second, third])
    # as many as there are places, in order
    two = processor(text=texts, images=[picture, other, picture])
    nested = processor(text=texts, images=[[picture], [], [other, picture]])
    for i, (text, mine) in enumerate(zip(texts, ([picture], None, [other, picture]))):
        assert ids(two, i) == ids(nested, i) == ids(processor(text=text, images=mine))
    assert torch.equal(two["images"], nested["images"])
    with pytest.raises(ValueError, match=SENTENCE):
        processor(text=texts[0])  # its picture would be lost
    with pytest.raises(ValueError, match=SENTENCE):
        processor.apply_chat_template(first, tokenize=True)  # a place and no picture


@pytest.mark.parametrize("text", ["User: What is it? Assistant:", " User: What is it? Assistant:"])
def test_a_text_that_is_rendered_already(
    processor: MolmoProcessor, builder: SampleBuilder, text: str
) -> None:
    """One User: and one Assistant: are enough, from any writer."""
    assert ids(processor(text=text)) == builder.prompt([], QUESTION).input_ids.tolist()
    assert (
        ids(processor(text=text, message_format="none"))
        == builder.prompt([], QUESTION).input_ids.tolist()
    )


def test_a_conversation_that_a_user_may_have_typed_ends_no_text(processor: MolmoProcessor) -> None:
    typed = "User: a Assistant: b<|endoftext|> User: c Assistant:"
    with pytest.warns(UserWarning, match="plain text"):
        plain = ids(processor(text=typed))
    assert processor.tokenizer.eos_token_id not in plain[1:]
    assert processor.decode(plain[1:]) == " " + typed
    told = ids(processor(text=typed, message_format="none"))  # the caller says that it is whole
    assert told == ids(processor.apply_chat_template(turns("a", "b", "c"), tokenize=True))
    for other in (
        "User: a Assistant: b<|endoftext|> and on",
        "User: one<|endoftext|>two Assistant:",
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for kind in ("none", "role"):
                assert (
                    processor.tokenizer.eos_token_id
                    not in ids(processor(text=other, message_format=kind))[1:]
                )


def test_a_text_of_the_template_that_is_stored_and_read(processor: MolmoProcessor) -> None:
    text = processor.apply_chat_template(turns(QUESTION))
    want = ids(processor(text=text))
    assert isinstance(text, Rendered) and type(pickle.loads(pickle.dumps(text))) is str
    assert ids(processor(text=pickle.loads(pickle.dumps(text)))) == want


def test_another_template_may_write_special_words(processor: MolmoProcessor) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}{{ tail }}"
    text = processor.apply_chat_template(
        turns("a <|endoftext|>", "b"), chat_template=template, tail="!"
    )
    assert text == "a <|endoftext|><|endoftext|>b<|endoftext|>!"
    end = processor.tokenizer.eos_token_id
    words = processor.words
    want = [
        words.bos,
        *words.encode(" a <|endoftext|>"),
        end,
        *words.encode("b"),
        end,
        *words.encode("!"),
    ]
    assert ids(processor(text=text)) == want


@pytest.mark.parametrize(
    "talk",
    [
        [],
        "Hi",
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}],
        [{"role": "assistant", "content": "Hi"}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}],
        [{"role": "user", "content": ["Hi"]}],
        [{"content": "Hi"}],
        ["Hi"],
        [{"role": "user", "content": [{"type": "image", "path": "/nowhere.png"}]}],
    ],
)
def test_no_conversation(processor: MolmoProcessor, talk: Any) -> None:
    with pytest.raises(ValueError, match=SENTENCE):
        processor.apply_chat_template(talk, tokenize=True)


def test_a_model_that_was_asked_otherwise(
    config: MolmoConfig, tokenizer: Path, tmp_path: Path
) -> None:
    """A captioner is trained without roles: its export asks as training did."""
    prompts = replace(DataConfig().prompts, message_format="none")
    data = DataConfig(tokenizer=str(tokenizer), sequence_length=512, prompts=prompts)
    builder = SampleBuilder(RunConfig(model=config, data=data))
    form = {"message_format": "none", "always_start_with_space": True}
    export.write_processor(tmp_path, config, tokenizer, form)
    processor = load(tmp_path, **form)
    assert (
        ids(processor(text="long_caption 65:"))
        == builder.prompt([], "long_caption 65:").input_ids.tolist()
    )
    talk = turns("a", "b", "c")
    whole = "<|endoftext|> a b<|endoftext|> c"
    assert processor.apply_chat_template(talk) == whole
    assert processor.tokenizer.apply_chat_template(talk, tokenize=False) == whole
    saved = processor.to_dict()
    assert saved["message_format"] == "none" and "_words" not in saved


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    """A picture of every mode that a file can have."""
    values = RandomState(1).randint(0, 256, (40, 60, 4)).astype(np.uint8)
    rgb = Image.fromarray(values[..., :3])
    rgba = Image.fromarray(values)
    ramp = np.linspace(0, 65535, 40 * 60).reshape(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = rgb.quantize(16)
    return {
        "RGB": encoded(rgb, "PNG"),
        "RGBA": encoded(rgba, "PNG"),
        "L": encoded(rgb.convert("L"), "PNG"),
        "LA": encoded(rgba.convert("LA"), "PNG"),
        "P": encoded(palette, "PNG"),
        "P, transparent": encoded(palette, "PNG", transparency=3),
        "PA": encoded(palette.convert("PA"), "TIFF"),
        "1": encoded(rgb.convert("1"), "PNG"),
        "I;16": encoded(Image.fromarray(ramp.astype(np.uint16)), "PNG"),
        "I;16 TIFF": encoded(Image.fromarray(ramp.astype(np.uint16)), "TIFF"),
        "I": encoded(Image.fromarray(ramp.astype(np.int32)), "TIFF"),
        "I of 8 bits": encoded(Image.fromarray((ramp / 257).astype(np.int32)), "TIFF"),
        "I;16B": encoded(Image.fromarray(ramp.astype(">u2")), "TIFF"),
        "F, to 1": encoded(Image.fromarray((ramp / 65535).astype(np.float32)), "TIFF"),
        "F, to 255": encoded(Image.fromarray((ramp / 257).astype(np.float32)), "TIFF"),
        "CMYK": encoded(rgb.convert("CMYK"), "TIFF"),
        "CMYK JPEG": encoded(rgb.convert("CMYK"), "JPEG"),
        "YCbCr": encoded(rgb.convert("YCbCr"), "TIFF"),
        "JPEG": encoded(rgb, "JPEG"),
        "JPEG, turned": encoded(rgb, "JPEG", exif=exif),
        "PNG, turned": encoded(rgb, "PNG", exif=exif),
        "I;16, turned": encoded(Image.fromarray(ramp.astype(np.uint16)), "PNG", exif=exif),
        "WEBP": encoded(rgba, "WEBP", lossless=True),
        "GIF": encoded(
            palette,
            "GIF",
            save_all=True,
            append_images=[palette.transpose(Image.Transpose.ROTATE_180)],
        ),
        "BMP": encoded(rgb, "BMP"),
    }


FILES = files()


@pytest.mark.parametrize("kind", FILES)
def test_pixels_of_every_mode(
    processor: MolmoProcessor, builder: SampleBuilder, kind: str, tmp_path: Path
) -> None:
    """Bytes in training, and a picture, its bytes, its path or its data URL in the export, are the same pixels."""
    data = FILES[kind]
    want = builder.prompt([data], QUESTION)
    path = tmp_path / "picture"
    path.write_bytes(data)
    url = "data:image/x;base64," + base64.b64encode(data).decode()
    opened = Image.open(path)
    loaded = Image.open(path)
    loaded.load()
    for given in (
        opened,
        loaded,
        data,
        str(path),
        path,
        url,
        {"bytes": data, "path": None},
        {"path": str(path)},
    ):
        assert same(processor(text=QUESTION, images=given), want), given
    assert same(
        processor(text=QUESTION, images=Image.open(path)),
        builder.prompt([Image.open(path)], QUESTION),
    )
    if "turned" in kind:
        assert (
            want.images.shape
            == builder.prompt([np.zeros((60, 40, 3), np.uint8)], QUESTION).images.shape
        )
    assert float(want.images.std()) > 0.1  # neither black nor white throughout


def test_sixteen_bits_are_scaled_and_not_clipped(processor: MolmoProcessor) -> None:
    grey = np.arange(0, 40 * 60, dtype=np.uint16).reshape(40, 60) * 27
    eight = processor(text="", images=(grey >> 8).astype(np.uint8))["images"]
    for given in (
        grey,
        Image.fromarray(grey),
        torch.from_numpy(grey.astype(np.int32) >> 8),
        grey[..., None],
    ):
        assert torch.equal(processor(text="", images=given)["images"], eight)


def test_arrays_and_tensors(
    processor: MolmoProcessor, builder: SampleBuilder, picture: Image.Image
) -> None:
    array = np.asarray(picture)
    want = builder.prompt([picture], QUESTION)
    tensor = torch.from_numpy(array.copy())
    shares = array.astype(np.float32) / 255
    for given in (
        array, array.astype(np.int64), array.astype(np.float64), shares, shares.astype(np.float64), tensor,
        tensor.permute(2, 0, 1), tensor.permute(2, 0, 1) / 255, tensor / 255, (tensor / 255).double(),
        np.concatenate([array, array[..., :1]], 2), np.asfortranarray(array), array[None], tensor[None],
    ):  # fmt: skip
        assert same(processor(text=QUESTION, images=given), want)
        if given.ndim == 3:
            assert same(processor(text=QUESTION, images=given), builder.prompt([given], QUESTION))
    half = processor(text=QUESTION, images=(tensor / 255).bfloat16())["images"]
    assert (half - want.images).abs().max() < 0.05
    two = processor(text=QUESTION, images=np.stack([array, array]))
    assert torch.equal(two["images"], processor(text=QUESTION, images=[array, array])["images"])


@pytest.mark.parametrize(
    "given",
    [
        np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 7), np.uint8), np.zeros(5, np.uint8), np.zeros((2, 2, 2, 5, 5)),
        np.full((5, 5, 3), 300), np.full((5, 5, 3), -1), np.full((5, 5, 3), np.nan), np.full((5, 5, 3), 1e9),
        np.full((5, 5, 3), "x"), np.zeros((5, 5, 3), complex), 7, {"a": 1}, {"bytes": None, "path": None}, object(),
        b"", b"no picture", "/nowhere/a.png", "nowhere.png", "", "a.png\0", "x" * 300, Path("/nowhere.png"), Path("/"),
        "data:image/png;base64,%%%", "http://127.0.0.1:9/a.png", [[None]], [None],
        Image.new("RGB", (0, 9)), Image.new("RGB", (2000, 1)),
    ],
    ids=lambda given: f"{type(given).__name__} {str(given)[:20]}",
)  # fmt: skip
def test_what_is_no_picture_is_one_sentence(processor: MolmoProcessor, given: Any) -> None:
    for pictures in (given, [given]):
        with pytest.raises(ValueError, match=SENTENCE):
            processor(text=QUESTION, images=pictures)


def test_ways_to_call(processor: MolmoProcessor, picture: Image.Image, path: Path) -> None:
    want = processor(text=QUESTION, images=picture)
    array = np.asarray(picture)
    calls = [
        processor(text=[QUESTION], images=picture),
        processor(text=[QUESTION], images=[picture]),
        processor(text=[QUESTION], images=[[picture]]),
        processor(text=(QUESTION,), images=(picture,)),
        processor(text=[QUESTION], images=array),
        processor(text=QUESTION, images=str(path)),
        processor(text=QUESTION, images=[path]),
        processor(text=[QUESTION], images=[str(path)]),
        processor(picture, QUESTION),
        processor(QUESTION, picture),
        processor([QUESTION], [picture]),
        processor(QUESTION, str(path)),
        processor(str(path), QUESTION),
        processor(
            text=QUESTION, images=picture, videos=None, audio=None, truncation=True, padding=True
        ),
        processor(text=QUESTION, images=picture, images_kwargs={"max_crops": None}, text_kwargs={}),
    ]
    for got in calls:
        assert set(got) == set(want) and all(torch.equal(got[key], want[key]) for key in want)
    two = processor(text=QUESTION, images=[str(path), path])
    for got in (
        processor(text=[QUESTION], images=[picture, picture]),
        processor(text=[QUESTION], images=[[path, path]]),
    ):
        assert all(torch.equal(got[key], two[key]) for key in two)
    for none in (None, [], [[]], ()):
        assert set(processor(text=[QUESTION], images=none)) == {"input_ids", "attention_mask"}
    both = processor(text=[QUESTION, "Hi"], images=[None, picture])
    assert (both["image_input_idx"][0] < 0).all() and (both["image_input_idx"][1] >= 0).any()
    assert ids(processor(images=path)) == ids(processor(text="", images=picture))


@pytest.mark.parametrize(
    "call",
    [
        {"text": []},
        {"text": [], "images": "picture"},
        {"text": [None]},
        {"text": [[QUESTION]]},
        {"text": 7},
        {"text": {"role": "user"}},
        {"text": ["a", "b"], "images": "picture"},
        {"text": ["a", "b"], "images": ["picture"]},
        {"text": ["a"], "images": [["picture"], ["picture"]]},
        {"text": ["a", "b"], "images": ["picture"] * 3},
        {"text": "a", "images": [["picture"], ["picture"]]},
        {"text": "picture"},
        {"text": QUESTION, "images": "picture", "videos": ["a.mp4"]},
        {"text": QUESTION, "audio": [0.0]},
        {"text": QUESTION, "return_tensors": "np"},
        {"text": QUESTION, "padding_side": "middle"},
        {"text": QUESTION, "message_format": "chat"},
        {"text": QUESTION, "images": "picture", "max_crops": 0},
        {"text": QUESTION, "images": "picture", "max_crops": 37},
        {"text": QUESTION, "images": "picture", "max_crops": "4"},
        {"text": QUESTION, "images": "picture", "images_kwargs": {"max_crop": 4}},
        {"text": QUESTION, "text_kwargs": {"style": "vqa2"}},
        {"text": QUESTION, "images": "picture", "truncation": True, "max_length": 5},
        {"text": "<|image|> and <|image|>", "images": "picture"},
        {"text": "one <|image|>", "images": ["picture", "picture"]},
    ],
    ids=str,
)
def test_calls_that_are_one_sentence(
    processor: MolmoProcessor, picture: Image.Image, call: dict
) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(one) for one in value]
        return picture if isinstance(value, str) and value == "picture" else value

    with pytest.raises(ValueError, match=SENTENCE):
        processor(**{name: filled(value) for name, value in call.items()})


def test_a_place_in_the_text_is_where_training_puts_the_picture(
    processor: MolmoProcessor, builder: SampleBuilder, picture: Image.Image
) -> None:
    text = "Look at <|image|> and at <|image|>."
    assert same(
        processor(text=text, images=[picture, picture]), builder.prompt([picture, picture], text)
    )


def test_padding_on_the_right_and_cutting(processor: MolmoProcessor, picture: Image.Image) -> None:
    batch = processor(text=["Hi", "A longer text"], images=[picture, None], padding_side="right")
    alone = processor(text="Hi", images=picture)
    width = alone["input_ids"].shape[1]
    assert batch["attention_mask"][0].tolist() == [1] * width  # the picture makes it the longer one
    assert batch["attention_mask"][1, -1] == 0 and batch["attention_mask"][1, 0] == 1
    assert torch.equal(batch["image_input_idx"][0], alone["image_input_idx"][0])
    cut = processor(text="A longer text", truncation=True, max_length=4)
    assert ids(cut) == ids(processor(text="A longer text"))[:4]
