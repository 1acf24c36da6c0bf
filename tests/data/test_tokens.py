"""Ids of text and of image tokens, against transformers' own reading of the same folders."""

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from molmo_ds.data.tokens import FILLER, IMAGE_TOKENS, Tokenizer, train_tokenizer

TEXTS = [
    "A grey cat sits on a red mat.",
    "How many cats? 12.",
    "  User: point to the cat\n Assistant:",
] * 20
VOCAB = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 320, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder, VOCAB)


def test_ids_equal_transformers(folder: Path, tokenizer: Tokenizer) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.words == len(theirs) <= 320 and theirs.eos_token_id == tokenizer.eos
    for text in [*TEXTS, "", " ", "áé 漢字\n\n", "1234", "it's"]:
        assert tokenizer.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


@given(st.text())
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    import unicodedata

    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.words and i != tokenizer.eos for i in ids)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_training_is_frugal(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(" Assistant:")) < 6  # learnt, not bytes
    assert len(tokenizer.encode("123456")) == 6  # every digit alone
    with pytest.raises(ValueError, match="at least 257"):
        train_tokenizer(TEXTS, 256, tokenizer.folder)


def test_names_of_special_tokens_are_plain_text(tokenizer: Tokenizer) -> None:
    for text in ("<|endoftext|>", "<im_patch>", "<|image|>"):
        ids = tokenizer.encode(text)
        assert len(ids) > 1 and tokenizer.eos not in ids and tokenizer.decode(ids) == text
        # as a spawned worker gets it
        assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == ids


def test_decode_drops_what_is_not_text(tokenizer: Tokenizer) -> None:
    hello = tokenizer.encode(" a cat")
    more = tokenizer.encode(" never shown")
    assert tokenizer.bos == tokenizer.eos == tokenizer.pad
    ids = [
        tokenizer.bos,
        VOCAB,
        VOCAB + 2,
        *hello,
        tokenizer.words,
        VOCAB - 1,
        VOCAB + 3,
        -1,
        tokenizer.eos,
        *more,
    ]
    assert tokenizer.decode(ids) == " a cat"
    assert tokenizer.decode([tokenizer.eos]) == tokenizer.decode([]) == ""
    other = Tokenizer(tokenizer.folder, VOCAB)
    other.bos = more[0]  # where starts and ends are two ids, an end at the beginning is an end
    assert other.decode([other.eos, *hello]) == "" and other.decode([other.bos, *hello]) == " a cat"
    shown = [tokenizer.name(i) for i in (VOCAB, VOCAB + 4, VOCAB + 5, VOCAB - 1, tokenizer.eos)]
    assert shown == ["<im_start>", "<|image|>", f"<{VOCAB + 5}>", f"<{VOCAB - 1}>", "<|endoftext|>"]


def test_released_folders_hold_filler_and_image_tokens(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    names = tokenizer.padded_words()
    assert len(names) == VOCAB - tokenizer.words + 5 and names[0] == FILLER.format(0)
    theirs.add_special_tokens({"additional_special_tokens": names})
    assert theirs.convert_tokens_to_ids(list(IMAGE_TOKENS)) == list(range(VOCAB, VOCAB + 5))
    theirs.save_pretrained(tmp_path)
    again = Tokenizer(tmp_path, VOCAB)
    assert (again.words, again.eos) == (tokenizer.words, tokenizer.eos)
    for text in [*TEXTS[:3], "<im_patch>", FILLER.format(3)]:
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode([again.bos, VOCAB - 1, *again.encode(text)]) == text


def test_folders_without_tokenizer_json(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Older folders hold a vocabulary and merges, which transformers turns into a fast tokenizer."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    words = model["vocab"] | {"<|endoftext|>": tokenizer.eos}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]) + "\n"
    )
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|endoftext|>",
        "bos_token": None,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    old = Tokenizer(tmp_path, VOCAB)
    assert old.eos == tokenizer.eos
    for text in TEXTS[:3]:
        assert old.encode(text) == tokenizer.encode(text)


def test_a_bos_of_its_own(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"bos_token": {"content": "!"}}))
    own = Tokenizer(tmp_path, VOCAB)
    assert own.bos == own.encode("!")[0] != own.eos
    path.write_text(json.dumps(settings | {"bos_token": "<s>"}))
    with pytest.raises(ValueError, match="<s> as bos_token"):
        Tokenizer(tmp_path, VOCAB)
    path.write_text(json.dumps({k: v for k, v in settings.items() if k != "eos_token"}))
    with pytest.raises(ValueError, match="no eos_token"):
        Tokenizer(tmp_path, VOCAB)


def test_folders_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        Tokenizer(folder, 300)
    with pytest.raises(ValueError, match="no tokenizer folder"):
        Tokenizer(tmp_path / "nothing", VOCAB)
    with pytest.raises(ValueError, match="no tokenizer that"):
        Tokenizer(tmp_path, VOCAB)
    (tmp_path / "tokenizer.json").write_text('{"version"')
    with pytest.raises(ValueError, match="tokenizer.json"):
        Tokenizer(tmp_path, VOCAB)


def test_what_is_kept_of_short_texts_is_not_the_callers_list(tokenizer: Tokenizer) -> None:
    first = tokenizer.encode("a short text")
    first.append(5)
    assert tokenizer.encode("a short text") == first[:-1]
