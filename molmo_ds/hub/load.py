"""Weights of others become ours: released folders, the reference's checkpoints, and backbones of transformers."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from molmo_ds import files, presets
from molmo_ds.architecture import MolmoConfig, VisionConfig
from molmo_ds.config import PromptConfig
from molmo_ds.files import Place
from molmo_ds.hub import configs, reference_prompts
from molmo_ds.model import families
from molmo_ds.model.families import molmo, molmo_reference
from molmo_ds.model.init import initial_parameter
from molmo_ds.settings import to_dict
from molmo_ds.weights import checkpoint, checksums, released_config, rename
from molmo_ds.weights.source import (
    TOKENIZER_FILES,
    compare,
    released_table,
    shapes_of,
    tokenizer_folder,
    untied,
)
from molmo_ds.weights.tensor_files import INDEX, TensorFolder, check_numbers
from molmo_ds.weights.tensor_writer import new_folder, write_tensors

WEIGHTS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.bin")  # files of a hub id


def from_hub(source: str | Path, out: str | Path, changes: tuple[str, ...] = ()) -> MolmoConfig:
    """A released folder (any Molmo, MolmoE included, or our export) -> a weights folder.

    Args:
        source: local folder, or a hub id where there is a network.
        changes: `vision.num_hidden_layers=3` overrides, for what config.json does not say.

    Raises ValueError with the key and both shapes for weights that do not fit; nothing is left then.
    """
    folder = find(source)
    config = configs.override(released_config.read(folder), changes)
    asked = released_config.prompts(folder, config.family)
    return _convert(folder, TensorFolder(folder), config, out, asked)


def from_reference(
    source: str | Path, out: str | Path, changes: tuple[str, ...] = ()
) -> MolmoConfig:
    """An unsharded checkpoint of the reference (config.yaml or model.yaml, and model.pt) -> a weights folder."""
    folder = files.place(source)
    file = next(
        (folder / name for name in ("config.yaml", "model.yaml") if (folder / name).is_file()), None
    )
    if file is None:
        raise ValueError(
            f"{folder} has no config.yaml; give an unsharded checkpoint of the reference."
        )
    found, asked = of_reference(file)
    config = configs.override(found, changes)
    weights = TensorFolder(
        folder
        if not (folder / "state_dict.safetensors").is_file()
        else folder / "state_dict.safetensors"
    )
    return _convert(folder, weights, config, out, asked)


def of_reference(file: Place) -> tuple[MolmoConfig, PromptConfig]:
    """A network and how it is asked, by the config.yaml of the reference; ValueError where it says none."""
    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}.") from None
    with released_config.whole(file):
        values = values.get("model", values)
        if not molmo.is_later(values):
            values = molmo_reference.whole(values)
        config = molmo.from_reference(values)
        return config, reference_prompts.prompts(values, config.family)


def backbones(
    llm: tuple[str, str | Path],
    vision: tuple[str, str | Path],
    out: str | Path,
    changes: tuple[str, ...] = (),
    seed: int = 6198,
) -> MolmoConfig:
    """A fresh Molmo from folders of transformers: a language model and a vision tower -> a weights folder.

    The connector and the extra embedding rows are initialised as `model.init` does. A head tied to the embedding
    becomes a copy of it. With `text.embedding_size` above the folder's vocabulary the embedding's new rows are
    initialised and the head's are zero. With `vision.num_positions` set to another grid, the position table is resized
    once as the reference's converter does; without, the tower resizes it in every forward.

    Args:
        llm: (name, folder or hub id); the name is a preset, whose sizes the folder must then have and whose family the
            weights are of (molmo2_8b, hemolmo_7b_d), or any name whose first word is the language model's family:
            qwen2-7b, olmo2, llama3, ...
        vision: (openai, metaclip, siglip or dinov2, folder or hub id).
        changes: `text.embedding_size=1024` overrides.
    """
    text_folder = find(llm[1])
    vision_folder = find(vision[1])
    with released_config.whole(text_folder / "config.json"):
        text = configs.text_config(released_config.read_json(text_folder))
    if llm[0] in presets.PRESETS:
        text = configs.fitted(text, llm[0], text_folder)
    elif not text.model_type.startswith(
        llm[0].split("-")[0].split("_")[0].lower().rstrip("0123456789.")
    ):
        raise ValueError(
            f"'{llm[0]}' does not fit {text_folder}, which holds a {text.model_type} model."
        )
    with released_config.whole(vision_folder / "config.json"):
        tower, images = configs.vision_config(released_config.read_json(vision_folder), vision[0])
    base = configs.base_of(llm[0], vision[0])
    # features are added to a row that is zero and stays so, unless the architecture learns it
    row = "zero" if base.connector.patch_row == "auto" else base.connector.patch_row
    fresh = replace(
        base,
        text=text,
        vision=tower,
        images=replace(base.images, resize=images.resize),
        connector=replace(base.connector, patch_row=row),
    )
    config = configs.override(fresh, changes)
    shapes = shapes_of(config)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield from _text(config, TensorFolder(text_folder), seed)
        yield from _vision(config.vision, TensorFolder(vision_folder))
        for name, shape in shapes.items():
            if name.startswith(("connector.", "scorer.")) or name == "embed.new_embedding":
                yield name, initial_parameter(config, name, shape, seed)

    source = f"{text_folder} with {vision_folder}"
    write_weights(out, config, checked(tensors(), shapes, source), text_folder, len(shapes))
    return config


def consolidate(source: str | Place, out: str | Place) -> MolmoConfig:
    """Any checkpoint of a run, whatever strategy wrote it -> a weights folder."""
    config, tensors, tokenizer = open_checkpoint(source)
    shapes = shapes_of(config)
    found = checked(tensors, shapes, source)
    write_weights(out, config, found, tokenizer, len(shapes), prompts_of(source))
    return config


def write_weights(
    out: str | Path,
    config: MolmoConfig,
    tensors: Iterator[tuple[str, Tensor]],
    tokenizer: Place | None,
    total: int,
    prompts: PromptConfig | None = None,
) -> None:
    """A weights folder: safetensors with our names, config.yaml, and the tokenizer's files if `tokenizer` has any.

    Without `prompts` it will be asked as the released models of its family.
    """
    said = {"model": to_dict(config)}
    if prompts is not None:
        said["data"] = {"prompts": to_dict(prompts)}
    with new_folder(out) as folder:
        write_tensors(folder, tensors, total=total)
        (folder / "config.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
        copy_tokenizer(tokenizer, folder / "tokenizer")


def read_config(folder: Place) -> MolmoConfig:
    """The MolmoConfig of a weights folder or a run, from its config.yaml."""
    if not (folder / "config.yaml").is_file():
        raise ValueError(
            f"{folder} has no config.yaml; give a weights folder or the checkpoint of a run."
        )
    return checkpoint.read_config(folder).model


def open_checkpoint(
    path: str | Place,
) -> tuple[MolmoConfig, Iterator[tuple[str, Tensor]], Path | None]:
    """(configuration, (our name, tensor) in any order, folder of the tokenizer or None) of a weights folder or a run.

    A model whose head is tied to its embedding comes out untied.
    """
    path = files.place(path)
    if not path.is_dir():
        raise ValueError(f"There is no folder '{path}'.")
    if (path / INDEX).is_file():
        checksums.check(path)
        folder = TensorFolder(path)
        tensors = ((name, folder.read(name)) for name in folder.names())
    else:
        path = checkpoint.find(path)
        tensors = checkpoint.read_full_state(path)
    config = read_config(path)
    words = checkpoint.read_config(path).data.tokenizer
    places = [path / "tokenizer", *([files.place(words)] if words else [])]
    tokenizer = next(filter(None, map(tokenizer_folder, places)), None)
    if not config.text.tie_word_embeddings:
        return config, tensors, tokenizer
    return untied(config), _untied(tensors), tokenizer


def prompts_of(path: str | Place) -> PromptConfig:
    """How the model of a weights folder or of a run's checkpoint is asked."""
    path = files.place(path)
    if not (path / INDEX).is_file():
        path = checkpoint.find(path)
    return checkpoint.read_config(path).data.prompts


def prompt_form(path: str | Place) -> dict[str, str | bool]:
    """`message_format` and `always_start_with_space` of `prompts_of`."""
    prompts = prompts_of(path)
    return {name: getattr(prompts, name) for name in released_config.PROMPTS}


def _untied(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        if name != "head.lm_head.weight":
            yield name, tensor
        if name == "embed.embedding":
            yield "head.lm_head.weight", tensor
        del tensor


def find(source: str | Place, patterns: Sequence[str] = WEIGHTS) -> Place:
    """A folder, local or in a store, or the download of a hub id's files; ValueError if it is neither."""
    folder = files.place(source)
    if folder.is_dir():
        return folder
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise ValueError(f"There is no folder '{source}'.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(patterns)))
    # the hub's client raises many kinds: no network, no such model, no permission
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"There is no folder '{source}', and it could not be downloaded: {reason}."
        ) from None


def checked(
    tensors: Iterator[tuple[str, Tensor]], shapes: dict[str, list[int]], source: str | Path
) -> Iterator[tuple[str, Tensor]]:
    """The tensors, checked against `shapes`; ValueError at the first that differs, or at the end for missing ones."""
    missing = dict(shapes)
    for name, tensor in tensors:
        compare(source, name, list(tensor.shape), missing.pop(name, None))
        check_numbers(source, name, tensor)
        yield name, tensor
        del tensor  # or it would live while the next one is made
    for name, want in missing.items():
        compare(source, name, None, want)


def copy_tokenizer(source: Place | None, target: Path) -> None:
    """Copy a tokenizer's files, if there are any."""
    folder = tokenizer_folder(source) if source else None
    found = (
        [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()] if folder else []
    )
    if found:
        target.mkdir(exist_ok=True)
    for file in found:
        shutil.copyfile(file, target / file.name)


def _convert(
    source: Place,
    folder: TensorFolder,
    config: MolmoConfig,
    out: str | Place,
    prompts: PromptConfig,
) -> MolmoConfig:
    config = untied(config)
    tensors = rename.to_ours(released_table(source, folder, config), folder.read)
    write_weights(out, config, tensors, source, len(shapes_of(config)), prompts)
    return config


def _text(config: MolmoConfig, folder: TensorFolder, seed: int) -> Iterator[tuple[str, Tensor]]:
    table = families.decoder(config.text.model_type).rename_table(config.text, folder)

    def read(key: str) -> Tensor:
        tied = key == "lm_head.weight" and key not in folder
        return folder.read("model.embed_tokens.weight" if tied else key)

    for name, tensor in rename.to_ours(table, read):
        missing = config.text.embedding_size - len(tensor)
        if name == "embed.embedding" and missing > 0:
            rows = initial_parameter(config, name, [missing, tensor.shape[1]], seed)
            tensor = torch.cat((tensor, rows.to(tensor.dtype)))
        elif name == "head.lm_head.weight" and missing > 0:
            tensor = F.pad(tensor, (0, 0, 0, missing))
        yield name, tensor


def _vision(vision: VisionConfig, folder: TensorFolder) -> Iterator[tuple[str, Tensor]]:
    table = families.tower(vision.model_type).rename_table(vision, folder)
    for name, tensor in rename.to_ours(table, folder.read):
        if name == "vision.embeddings.position_embedding":
            tensor = resized_positions(tensor, vision)
        yield name, tensor


def resized_positions(table: Tensor, vision: VisionConfig) -> Tensor:
    """Position table [(1 +) n, D] on the grid of `vision.num_positions`, by the formula of the reference's converter.

    Bicubic without antialias, with the scale of (grid + 0.1) / old grid that transformers' DINOv2 once used.
    """
    first = vision.class_tokens
    old = round((len(table) - first) ** 0.5)
    new = round((vision.num_positions or (vision.image_size // vision.patch_size) ** 2) ** 0.5)
    if old == new or old * old != len(table) - first:
        return table
    patches = (
        rearrange(table[first:], "(row column) width -> 1 width row column", row=old)
        .contiguous()
        .float()
    )
    scale = (new + 0.1) / old
    patches = F.interpolate(
        patches, scale_factor=(scale, scale), mode="bicubic", align_corners=False
    )
    assert patches.shape[-2:] == (new, new)
    flat = rearrange(patches, "1 width row column -> (row column) width")
    return torch.cat((table[:first], flat.to(table.dtype)))
