"""A checkpoint becomes a released-format folder: weights, configuration, model code, tokenizer and processor."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from molmo_ds.architecture import MolmoConfig
from molmo_ds.hub import molmo2_code, molmo2_processor
from molmo_ds.hub.bundle import bundle
from molmo_ds.hub.in_vllm import VLLM_START, InVLLM, patch_and_word_norm, rows_around
from molmo_ds.hub.load import checked, find, open_checkpoint, prompt_form
from molmo_ds.hub.words import ends_of, save_tokenizer, whole_tokenizer
from molmo_ds.model import families
from molmo_ds.model.families import molmo_names
from molmo_ds.model.init import row_of
from molmo_ds.settings import to_dict
from molmo_ds.weights.source import PAD_EMBED, shapes_of
from molmo_ds.weights.tensor_writer import SHARD, new_folder, write_tensors

log = logging.getLogger("molmo_ds")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def chat_template(message_format: str, start: str) -> str:
    """Jinja that writes a conversation as training reads it: `start`, turns as of `turns.speak`, ends after answers.

    Servers that tokenize the text as it is (vLLM without a picture) need the start in it.
    """
    before, after = ("'User: ' + ", " + ' Assistant:'") if message_format == "role" else ("", "")
    return (
        "{%- for message in messages -%}"
        "{%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}"
        "{{ raise_exception('User and assistant take turns, the user begins, and there is no other role.') }}"
        "{%- endif -%}"
        "{%- if message['content'] is string -%}{%- set text = message['content'] -%}"
        "{%- else -%}{%- set parts = message['content'] | selectattr('type', 'equalto', 'text') -%}"
        "{%- set text = parts | map(attribute='text') | join(' ') -%}{%- endif -%}"
        "{%- if loop.first -%}{{ '" + start + "' }}{%- else -%}{{ ' ' }}{%- endif -%}"
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
    code: str | Path | None = None,
) -> InVLLM:
    """Write `out`, tensor by tensor; it loads in transformers without this package, as the released folders do.

    A Molmo needs trust_remote_code, and its folder holds the code; transformers (5.23 and later) knows Molmo2 itself.

    Args:
        checkpoint: a weights folder, or a checkpoint of a run whatever strategy wrote it.
        dtype: fp32 or bf16; None keeps the checkpoint's.
        tokenizer: a transformers tokenizer folder; None takes the checkpoint's.
        code: folder of a released Molmo2, or hub id, whose code goes along for transformers 4.57.

    Raises ValueError where a tensor is missing or has another shape than the configuration asks for, where `out`
    exists, for an unknown dtype, and for a family without a released format; nothing is left then.
    """
    if dtype not in (None, *DTYPES):
        raise ValueError(f"There is no dtype '{dtype}'; use {' or '.join(DTYPES)}.")
    config, tensors, words = open_checkpoint(checkpoint)
    released = families.format_of(config)
    words = Path(tokenizer) if tokenizer else words
    if code is not None:
        if config.family != "molmo2":
            raise ValueError(
                "--code is for a Molmo2; the folder of a Molmo holds its code already."
            )
        code = find(code, ["*.py"])
        molmo2_code.check(code)
    with new_folder(out) as folder:
        kinds: set[torch.dtype] = set()
        norms: list[float] = []
        count = sum(len(rule.theirs) for rule in molmo_names.released(config))
        write_tensors(
            folder,
            _released(config, tensors, checkpoint, kinds, norms),
            shard_bytes,
            DTYPES.get(dtype),
            count,
        )
        kind = DTYPES.get(dtype) or (kinds.pop() if len(kinds) == 1 else torch.float32)
        values = released.to_released(config, str(kind).removeprefix("torch."))
        _write_json(folder / "config.json", values)
        refusal = released.not_servable(config)
        if config.family == "molmo":
            for name, source in bundle().items():
                (folder / name).write_text(source)
            shutil.copyfile(Path(__file__).with_name("remote") / "README.md", folder / "README.md")
        if words is not None and config.family == "molmo":
            start = write_processor(folder, config, words, prompt_form(checkpoint))
            if start != VLLM_START:
                why = (
                    f"its Molmo puts pictures after {VLLM_START}, and texts begin with {start} here"
                )
                refusal = refusal or why
        elif words is not None:
            molmo2_processor.write(folder, config, words)
            if prompt_form(checkpoint)["message_format"] != "chat":
                log.warning(
                    "%s was not trained on chats, but readers of the exported folder ask Molmo2 in chats; train with "
                    "data.prompts.message_format=chat.",
                    checkpoint,
                )
        if code is not None:
            molmo2_code.write(folder, code)
    return InVLLM(refusal=refusal, patch_norm=norms[0], word_norm=norms[1])


def write_processor(
    folder: Path, config: MolmoConfig, tokenizer: Path, form: dict[str, str | bool]
) -> str:
    """The tokenizer with all its special words, the processor's configuration, and how to end a text.

    Returns the name of the token that begins a text.

    `form`: `message_format` and `always_start_with_space`, as the model was trained to be asked.
    """
    ours, theirs = whole_tokenizer(config, tokenizer)
    start = theirs.convert_ids_to_tokens(ours.bos)
    space = " " * form["always_start_with_space"]
    save_tokenizer(theirs, chat_template(form["message_format"], start + space), folder)
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
    _write_json(folder / "generation_config.json", ends_of(ours))
    return start


def _released(
    config: MolmoConfig,
    tensors: Iterator[tuple[str, Tensor]],
    source: str | Path,
    kinds: set[torch.dtype],
    norms: list[float],
) -> Iterator[tuple[str, Tensor]]:
    """Our tensors in any order -> theirs; at most the parts of one of theirs are held.

    Args:
        kinds: takes the types of the tensors.
        norms: takes that of the embedding of <im_patch>, and the mean of the rows around it.
    """
    rule_of = {name: rule for rule in molmo_names.released(config) for name in rule.ours}
    held = {}
    for name, tensor in checked(tensors, shapes_of(config), source):
        rule = rule_of[name]
        kinds.add(tensor.dtype)
        row = row_of(config, name, config.patch_token)
        if row is not None:
            first, end = rows_around(row, len(tensor))
            norms += patch_and_word_norm(tensor[first:end], row - first)
        held[name] = tensor
        del tensor  # references left in variables would keep a second tensor in memory
        if all(part in held for part in rule.ours):
            yield from zip(rule.theirs, rule.form.to_theirs([held.pop(part) for part in rule.ours]))
    # vLLM wants it all the same
    if config.family == "molmo" and config.connector.padding_embed == "none":
        width = config.vision.hidden_size * len(config.vision.feature_layers)
        yield PAD_EMBED, torch.zeros(2, width, dtype=next(iter(kinds)))


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
