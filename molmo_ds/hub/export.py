"""A checkpoint becomes a released-format folder: weights, configuration, model code, tokenizer and processor."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from molmo_ds.config import MolmoConfig
from molmo_ds.data.tokens import IMAGE_TOKENS, Tokenizer
from molmo_ds.hub.bundle import bundle
from molmo_ds.hub.load import checked, open_checkpoint, prompt_form
from molmo_ds.model.families import molmo_names
from molmo_ds.model.families.molmo import not_servable, to_released
from molmo_ds.settings import to_dict
from molmo_ds.weights.source import PAD_EMBED, shapes_of
from molmo_ds.weights.tensor_writer import SHARD, new_folder, write_tensors

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def chat_template(message_format: str) -> str:
    """Jinja that writes a conversation as `turns.speak` does, without the first space, an end after each answer."""
    before, after = ("'User: ' + ", " + ' Assistant:'") if message_format == "role" else ("", "")
    return (
        "{%- for message in messages -%}"
        "{%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}"
        "{{ raise_exception('User and assistant take turns, the user begins, and there is no other role.') }}"
        "{%- endif -%}"
        "{%- if message['content'] is string -%}{%- set text = message['content'] -%}"
        "{%- else -%}{%- set parts = message['content'] | selectattr('type', 'equalto', 'text') -%}"
        "{%- set text = parts | map(attribute='text') | join(' ') -%}{%- endif -%}"
        "{%- if not loop.first -%}{{ ' ' }}{%- endif -%}"
        "{%- if message['role'] == 'user' -%}{{ " + before + "text" + after + " }}"
        "{%- else -%}{{ text + eos_token }}{%- endif -%}"
        "{%- endfor -%}"
    )


def to_hub(
    checkpoint: str | Path,
    out: str | Path,
    dtype: str | None = None,
    tokenizer: str | Path | None = None,
    shard_bytes: int = SHARD,
) -> str | None:
    """Write `out`, tensor by tensor; it loads in transformers with trust_remote_code, without this package.

    Args:
        checkpoint: a weights folder, or a checkpoint of a run whatever strategy wrote it.
        dtype: fp32 or bf16; None keeps the checkpoint's.
        tokenizer: a transformers tokenizer folder; None takes the checkpoint's.

    Returns:
        Why vLLM cannot serve the model, None if it can.

    Raises ValueError where a tensor is missing or has another shape than the configuration asks for, where `out`
    exists, and for an unknown dtype; nothing is left then.
    """
    if dtype not in (None, *DTYPES):
        raise ValueError(f"There is no dtype '{dtype}'; use {' or '.join(DTYPES)}.")
    config, tensors, words = open_checkpoint(Path(checkpoint))
    words = Path(tokenizer) if tokenizer else words
    with new_folder(out) as folder:
        kinds: set[torch.dtype] = set()
        count = sum(len(rule.theirs) for rule in molmo_names.released(config))
        write_tensors(
            folder,
            _released(config, tensors, checkpoint, kinds),
            shard_bytes,
            DTYPES.get(dtype),
            count,
        )
        kind = DTYPES.get(dtype) or (kinds.pop() if len(kinds) == 1 else torch.float32)
        values = to_released(config, str(kind).removeprefix("torch."))
        _write_json(folder / "config.json", values)
        for name, source in bundle().items():
            (folder / name).write_text(source)
        shutil.copyfile(Path(__file__).with_name("remote") / "README.md", folder / "README.md")
        if words is not None:
            write_processor(folder, config, words, prompt_form(Path(checkpoint)))
    return not_servable(config)


def write_processor(
    folder: Path, config: MolmoConfig, tokenizer: Path, form: dict[str, str | bool]
) -> None:
    """The tokenizer with all its special words, the processor's configuration, and how to end a text.

    `form`: `message_format` and `always_start_with_space`, as the model was trained to be asked.
    """
    from transformers import AddedToken

    ours = Tokenizer(tokenizer, config.text.vocab_size, config.family)
    theirs = _tokenizer_of_transformers(tokenizer)
    missing = [
        word
        for word in ours.padded_words()
        if theirs.convert_tokens_to_ids(word) is None or len(theirs) <= ours.words
    ]
    theirs.add_tokens(
        [AddedToken(word, special=True, normalized=False) for word in missing], special_tokens=True
    )
    for i, word in enumerate(IMAGE_TOKENS):
        if theirs.convert_tokens_to_ids(word) != ours.vocab_size + i:
            found = theirs.convert_tokens_to_ids(word)
            raise ValueError(
                f"The tokenizer {tokenizer} gives {word} the id {found}, not {ours.vocab_size + i}."
            )
    theirs.chat_template = chat_template(form["message_format"])
    theirs.save_pretrained(folder)
    images = {
        "auto_map": {
            "AutoImageProcessor": "image_preprocessing_molmo.MolmoImageProcessor",
            "AutoProcessor": "preprocessing_molmo.MolmoProcessor",
        },
        "image_processor_type": "MolmoImageProcessor",
        "processor_class": "MolmoProcessor",
    }
    from molmo_ds.hub.remote.image_preprocessing_molmo import MolmoImageProcessor

    _write_json(
        folder / "preprocessor_config.json", MolmoImageProcessor(to_dict(config)).to_dict() | images
    )
    processor = {"auto_map": images["auto_map"], "processor_class": "MolmoProcessor"}
    _write_json(folder / "processor_config.json", processor | form)
    ends = {"bos_token_id": ours.bos, "eos_token_id": ours.eos, "pad_token_id": ours.pad}
    _write_json(folder / "generation_config.json", ends)


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


def _released(
    config: MolmoConfig,
    tensors: Iterator[tuple[str, Tensor]],
    source: str | Path,
    kinds: set[torch.dtype],
) -> Iterator[tuple[str, Tensor]]:
    """Our tensors in any order -> theirs; at most the parts of one of theirs are held."""
    rule_of = {name: rule for rule in molmo_names.released(config) for name in rule.ours}
    held = {}
    for name, tensor in checked(tensors, shapes_of(config), source):
        rule = rule_of[name]
        kinds.add(tensor.dtype)
        held[name] = tensor
        del tensor  # references left in variables would keep a second tensor in memory
        if all(part in held for part in rule.ours):
            yield from zip(rule.theirs, rule.form.to_theirs([held.pop(part) for part in rule.ours]))
    if config.connector.padding_embed == "none":  # vLLM wants it all the same
        width = config.vision.hidden_size * len(config.vision.feature_layers)
        yield PAD_EMBED, torch.zeros(2, width, dtype=next(iter(kinds)))


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
