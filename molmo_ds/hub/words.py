"""The tokenizer of an exported folder: transformers' own class, with all special words of the model."""

import json
from pathlib import Path
from typing import Any

from molmo_ds.architecture import MolmoConfig
from molmo_ds.data.tokens import Tokenizer


def whole_tokenizer(config: MolmoConfig, folder: Path) -> tuple[Tokenizer, Any]:
    """(ours, transformers') of a tokenizer folder, the latter with filler words and the special words of the family.

    Raises ValueError where the folder gives one of them another id than the model has.
    """
    from transformers import AddedToken

    ours = Tokenizer(folder, config.text.vocab_size, config.family)
    theirs = _tokenizer_of_transformers(folder)
    missing = [
        word
        for word in ours.padded_words()
        if theirs.convert_tokens_to_ids(word) is None or len(theirs) <= ours.words
    ]
    theirs.add_tokens(
        [AddedToken(word, special=True, normalized=False) for word in missing], special_tokens=True
    )
    for i, word in enumerate(ours.extra):
        if theirs.convert_tokens_to_ids(word) != ours.vocab_size + i:
            found = theirs.convert_tokens_to_ids(word)
            raise ValueError(
                f"The tokenizer {folder} gives {word} the id {found}, not {ours.vocab_size + i}."
            )
    return ours, theirs


def save_tokenizer(theirs: Any, chat_template: str, folder: Path) -> None:
    """Write the files of transformers' tokenizer so that every version from 4.46 on reads them alike.

    Transformers 5 names a class and a form of `extra_special_tokens` that 4 does not know; 4.46 reads the chat template
    from tokenizer_config.json only; and 4 deletes spaces before punctuation from decoded texts unless told not to.
    """
    theirs.chat_template = chat_template
    theirs.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    if values["tokenizer_class"] == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("backend", "is_local", "local_files_only"):
        values.pop(name, None)
    words = values.pop("extra_special_tokens", None)
    if words:
        values["additional_special_tokens"] = words
    values |= {"clean_up_tokenization_spaces": False, "chat_template": chat_template}
    path.write_text(json.dumps(values, indent=2) + "\n")


def ends_of(tokenizer: Tokenizer) -> dict[str, int]:
    """generation_config.json's ids of the beginning and the end of a text, and of padding."""
    return {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": tokenizer.pad,
    }


def _tokenizer_of_transformers(folder: Path) -> Any:
    """The tokenizer as transformers reads it; where its class would cut or merge otherwise, one made of the file."""
    from tokenizers import Tokenizer as FastTokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    theirs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if not (folder / "tokenizer.json").is_file():  # training reads it through transformers too
        return theirs
    fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    parts = [json.loads(one.to_str()) for one in (fast, theirs.backend_tokenizer)]
    if all(
        parts[0][name] == parts[1][name]
        for name in ("normalizer", "pre_tokenizer", "model", "decoder")
    ):
        return theirs
    fast.no_truncation()
    fast.no_padding()
    return PreTrainedTokenizerFast(tokenizer_object=fast, **theirs.special_tokens_map)
