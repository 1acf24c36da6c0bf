"""Text to token ids and back: a transformers tokenizer folder with Molmo's image tokens after its vocabulary."""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

# ids vocab_size + 0 .. 4 of Molmo
IMAGE_TOKENS = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>")
# names of the ids from vocab_size on, by family
EXTRA_TOKENS = {
    "molmo": IMAGE_TOKENS,
    "hemolmo": (*IMAGE_TOKENS, "<im_low>"),
    "molmo2": (
        *IMAGE_TOKENS[:4],
        "<low_res_im_start>",
        "<|image|>",
        "<im_low>",
        "<frame_start>",
        "<frame_end>",
        "<|video|>",
        "<|points|>",
        "<|token_index|>",
        "<|vit_index|>",
        "<|vit_loc|>",
    ),
}
# names of the ids between a tokenizer's last word and vocab_size, as released
FILLER = "|<EXTRA_TOKENS_{}>|"
# Qwen2's way to split text into pieces: every digit alone
_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # noqa: E501

# texts of at most SHORT characters whose ids are kept, 4 MB at most
KEPT = 4096
SHORT = 256


class Words:
    """Text to ids and back with one tokenizer of the tokenizers library, the same in training and in exported folders.

    Text never yields a special token, whatever it contains: only the template places them. Image tokens have the ids
    from `vocab_size` on.
    """

    def __init__(self, fast: FastTokenizer, vocab_size: int, bos: int, eos: int):
        # a tokenizer.json may say otherwise, and a text would lose its end without a word
        fast.no_truncation()
        fast.no_padding()
        self._fast = fast
        self.vocab_size = vocab_size
        self.bos = bos
        self.eos = eos
        added = {
            token: entry
            for token, entry in fast.get_added_tokens_decoder().items()
            if not entry.special
        }
        plain = [
            entry.content
            for token, entry in added.items()
            if token in (bos, eos) or _is_ours(entry.content)
        ]
        fast.add_special_tokens(
            [AddedToken(name, special=True, normalized=False) for name in plain]
        )
        fast.encode_special_tokens = True  # special names inside a text are plain text
        self._kept = functools.lru_cache(KEPT)(self._ids)

    def __reduce__(self) -> tuple:  # the pickled library object forgets encode_special_tokens
        return Words, (self._fast, self.vocab_size, self.bos, self.eos)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with nothing put before or after it.

        Those of short texts are kept: a sample is sized before it is built, and prompts come again.
        """
        return list(self._kept(text) if len(text) <= SHORT else self._ids(text))

    def _ids(self, text: str) -> list[int]:
        return self._fast.encode(text, add_special_tokens=False).ids

    def special(self, name: str) -> int:
        """The id of a special token that only templates place; ValueError for an unknown name."""
        token = self._fast.token_to_id(name)
        if token is None:
            raise ValueError(
                f"The tokenizer has no token {name}, which data.prompts.message_format=chat needs; use role, or a"
                " tokenizer that has it."
            )
        return token


class Tokenizer(Words):
    """The words of a tokenizer folder; ids run below `vocab_size`, image tokens from there on.

    It reads `tokenizer.json` with the tokenizers library alone, since transformers costs a data worker 100 MB.

    Args:
        family: of the model, which decides what the ids from vocab_size on are called.
    """

    def __init__(self, folder: str | Path, vocab_size: int, family: str = "molmo"):
        self.folder = Path(folder)
        self.vocab_size = vocab_size
        self.family = family
        self.extra = EXTRA_TOKENS[family]
        self._fast = _read(self.folder)
        self.words = self._count_words()  # the filler fills up from here to vocab_size
        self.digest = hashlib.sha256(self._fast.to_str().encode()).hexdigest()
        eos = self._special("eos_token")
        if eos is None:
            raise ValueError(
                f"The tokenizer in {folder} has no eos_token; name one in its tokenizer_config.json."
            )
        bos = self._special("bos_token")
        # without one the end starts a text
        super().__init__(self._fast, vocab_size, eos if bos is None else bos, eos)
        self.pad = self.eos
        self._hidden = {
            token for token, entry in self._fast.get_added_tokens_decoder().items() if entry.special
        }

    def __reduce__(self) -> tuple:
        return Tokenizer, (self.folder, self.vocab_size, self.family)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids up to the first end; a leading start, special, image and filler ids are no text."""
        return self._fast.decode(list(self._words_of(ids)), skip_special_tokens=True)

    def padded_words(self) -> list[str]:
        """Names that complete the vocabulary, in order of their ids: filler up to vocab_size, then image tokens."""
        return [FILLER.format(i) for i in range(self.vocab_size - self.words)] + list(self.extra)

    def name(self, token: int) -> str:
        """One id as readable text, for pages that show tokens."""
        if token >= self.vocab_size:
            extra = token - self.vocab_size
            return self.extra[extra] if extra < len(self.extra) else f"<{token}>"
        return (
            self._fast.decode([token], skip_special_tokens=False)
            if token < self.words
            else f"<{token}>"
        )

    def _words_of(self, ids: Iterable[int]) -> Iterator[int]:
        for i, token in enumerate(ids):
            token = int(token)
            if i == 0 and token == self.bos:
                continue
            if token == self.eos:
                return
            if 0 <= token < self.words and token not in self._hidden:
                yield token

    def _count_words(self) -> int:
        start = self._fast.token_to_id(IMAGE_TOKENS[0])
        if start == self.vocab_size:  # a released folder, with filler and image tokens in it
            filler = self._fast.token_to_id(FILLER.format(0))
            return start if filler is None else filler
        words = self._fast.get_vocab_size(with_added_tokens=True)
        if words > self.vocab_size:
            raise ValueError(
                f"The tokenizer in {self.folder} has {words} words and the model only {self.vocab_size};"
                " set model.text.vocab_size (and embedding_size) to at least that."
            )
        return words

    def _special(self, name: str) -> int | None:
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            path = self.folder / file
            value = _settings(path).get(name) if path.is_file() else None
            if value is not None:
                content = value.get("content") if isinstance(value, dict) else value
                token = self._fast.token_to_id(content) if isinstance(content, str) else None
                if token is None:
                    raise ValueError(
                        f"{path} names {content} as {name}, but the tokenizer does not know that word."
                    )
                return token
        return None


def _is_ours(name: str) -> bool:
    extra = EXTRA_TOKENS["molmo2"]  # which holds those of Molmo
    return name in extra or name.startswith(FILLER.split("{")[0])


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    folder: str | Path,
    pieces: str = _PIECES,
    special: tuple[str, ...] = ("<|endoftext|>",),
) -> Tokenizer:
    """Train byte-level BPE of at most `vocab_size` words, the last of them special, and save a transformers folder.

    `pieces`, a regular expression, cuts a text into what one word may span at most; by default it is Qwen2's, as is the
    normalisation. The last special word ends a text, the first fills up a batch. vocab_size must hold the 256 bytes and
    the special words: at least 257.
    """
    least = 256 + len(special)
    if vocab_size < least:
        raise ValueError(f"A byte-level tokenizer needs at least {least} words, not {vocab_size}.")
    fast = FastTokenizer(models.BPE())
    fast.normalizer = normalizers.NFC()
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    fast.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in special])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": special[-1],
        "pad_token": special[0],
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    return Tokenizer(folder, vocab_size)


def _settings(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} is no JSON of settings by name; copy the tokenizer's folder again."
        )
    return values


def _read(folder: Path) -> FastTokenizer:
    if not folder.is_dir():
        raise ValueError(
            f"There is no tokenizer folder '{folder}'; set data.tokenizer to one that transformers saved."
        )
    if (folder / "tokenizer.json").is_file():
        try:
            return FastTokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            reason = str(error).rstrip(".")
            raise ValueError(f"{folder / 'tokenizer.json'} cannot be read: {reason}.") from None
    # older folders hold vocab.json and merges.txt, which transformers converts
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"{folder} holds no tokenizer that transformers can read: {reason}."
        ) from None
