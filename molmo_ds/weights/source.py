"""A folder of weights of any kind, opened: what it says of the model, and its tensors under our names, row by row.

The kinds: a run's checkpoint whatever strategy wrote it, our folder of weights, a released folder, our export.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from molmo_ds import files
from molmo_ds.architecture import MolmoConfig
from molmo_ds.config import DataConfig, RunConfig
from molmo_ds.files import Place, Remote
from molmo_ds.model.families import molmo_names
from molmo_ds.model.families.table import SAME, Rule, Table
from molmo_ds.model.molmo import Molmo
from molmo_ds.stores.copies import copy_of
from molmo_ds.weights import checkpoint, checksums, released_config
from molmo_ds.weights.checkpoint import Found
from molmo_ds.weights.tensor_files import INDEXES, SINGLE, TensorFolder

EMBEDDING, HEAD = "embed.embedding", "head.lm_head.weight"
# part, parts of `open_source` for which no file's checksum is compared
NO_FILE = (2**31 - 1, 2**31)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
IGNORED = ("rotary_emb.inv_freq", "position_ids")  # buffers that old releases saved
PAD_EMBED = "model.vision_backbone.pad_embed"  # exported as zeros where a model has none


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """The tensors that a model of `config` needs, of which every one is there and has its shape.

    A head that is tied to the embedding comes out as a copy of it, and the configuration as untied.
    """

    path: Place
    config: RunConfig  # data.tokenizer is the folder of its tokenizer, "" where it has none
    shapes: dict[str, list[int]]

    @abstractmethod
    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows [first, last) of a tensor; mapped memory where the file holds them so. Not to be written to."""

    def elements(self, name: str, first: int, last: int) -> Tensor:
        """Elements [first, last) of a flattened tensor, and as little else read as the folder allows."""
        row = math.prod(self.shapes[name][1:])
        begin = first // row
        rows = self.rows(name, begin, -(-last // row)).reshape(-1)
        return rows[first - begin * row : last - begin * row]

    @abstractmethod
    def file(self, name: str) -> Place:
        """A file that holds a tensor, or some of it."""


@dataclass(frozen=True, kw_only=True)
class OwnFolder(Source):
    """A folder of weights under our names."""

    folder: TensorFolder

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """See Source."""
        return self.folder.rows(self._stored(name), first, last)

    def elements(self, name: str, first: int, last: int) -> Tensor:
        """See Source."""
        return self.folder.elements(self._stored(name), first, last)

    def file(self, name: str) -> Place:
        """See Source."""
        return self.folder.file(self._stored(name))

    def _stored(self, name: str) -> str:
        return EMBEDDING if name == HEAD and name not in self.folder else name


@dataclass(frozen=True, kw_only=True)
class Run(Source):
    """A checkpoint of a run, with its adapters merged."""

    found: Found

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """See Source."""
        stored = self._stored(name)
        weight = self._own_rows(stored, first, last)
        if not self._adapted(stored):
            return weight
        stem = stored.removesuffix("weight")
        down = self.found.whole(f"{stem}lora_A.weight").double()
        up = self._own_rows(f"{stem}lora_B.weight", first, last).double()
        alpha = self.config.lora.alpha / len(down)
        return torch.addmm(weight.double(), up, down, alpha=alpha).to(weight.dtype)

    def elements(self, name: str, first: int, last: int) -> Tensor:
        """See Source."""
        stored = self._stored(name)
        if self._adapted(stored):
            return super().elements(name, first, last)
        return self.found.elements(stored, "weight", first, last)

    def file(self, name: str) -> Place:
        """See Source."""
        return self.found.file(self._stored(name))

    def _adapted(self, stored: str) -> bool:
        return f"{stored.removesuffix('weight')}lora_A.weight" in self.found.shapes

    def _own_rows(self, name: str, first: int, last: int) -> Tensor:
        shape = self.found.shapes[name]
        row = math.prod(shape[1:])
        return self.found.elements(name, "weight", first * row, last * row).view(
            last - first, *shape[1:]
        )

    def _stored(self, name: str) -> str:
        return EMBEDDING if name == HEAD and name not in self.found.shapes else name


@dataclass(frozen=True, kw_only=True)
class Released(Source):
    """A released folder, or our export; `rules` by our name."""

    folder: TensorFolder
    rules: dict[str, Rule]

    def elements(self, name: str, first: int, last: int) -> Tensor:
        """See Source."""
        rule = self.rules[name]
        if rule.form is SAME:
            return self.folder.elements(rule.theirs[0], first, last)
        return super().elements(name, first, last)

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """See Source."""
        rule = self.rules[name]
        index = rule.ours.index(name)

        def read(number: int, first: int = 0, last: int | None = None) -> Tensor:
            return self.folder.rows(rule.theirs[number], first, last)

        if rule.form.rows is not None:
            return rule.form.rows(read, index, first, last)
        return rule.form.to_ours([read(number) for number in range(len(rule.theirs))])[index][
            first:last
        ]

    def file(self, name: str) -> Place:
        """See Source."""
        return self.folder.file(self.rules[name].theirs[0])


def open_source(path: str | Place, part: int = 0, parts: int = 1) -> Source:
    """Open a run's folder, one of its checkpoints, a folder of weights, a released or an exported folder.

    A URL (s3://, gs://, weka://, hf://, http://) is read in place: what a rank needs, and no more.

    Args:
        part, parts: of the files that have checksums every `parts`-th is compared, from `part` on.

    Raises ValueError in a sentence for a folder that is none of these, or is damaged, or holds another model's tensors.
    """
    path = files.place(path)
    if (path / "config.json").is_file() and any(
        (path / name).is_file() for name in (*INDEXES, *SINGLE)
    ):
        checksums.check(path, part, parts)
        return _open_released(path)
    path = checkpoint.find(path, part, parts)
    config = checkpoint.read_config(path)
    words = tokenizer_folder(path / "tokenizer")
    data = replace(config.data, tokenizer=str(words)) if words else config.data
    config = replace(config, model=untied(config.model), data=data)
    shapes = shapes_of(config.model)
    if (path / "manifest.json").is_file():
        found = checkpoint.open_checkpoint(path)
        stored = {name: list(shape) for name, shape in found.shapes.items() if ".lora_" not in name}
        made = Run(path=path, config=config, shapes=shapes, found=found)
    else:
        folder = TensorFolder(path)
        stored = {name: folder.shape(name) for name in folder.names()}
        made = OwnFolder(path=path, config=config, shapes=shapes, folder=folder)
    if (
        HEAD not in stored
        and EMBEDDING in stored
        and checkpoint.read_config(path).model.text.tie_word_embeddings
    ):
        stored[HEAD] = stored[EMBEDDING]
    for name in (*shapes, *stored):
        compare(path, name, stored.get(name), shapes.get(name))
    return made


def tokenizer_folder(place: Place) -> Path | None:
    """The local folder of a tokenizer, copied from its store where it is in one; None where there is none."""
    if not isinstance(place, Remote):
        return place if place.is_dir() else None
    return copy_of(place, TOKENIZER_FILES)


def _open_released(path: Place) -> Source:
    model = untied(released_config.read(path))
    prompts = released_config.prompts(path, model.family)
    words = str(tokenizer_folder(path) or "")
    config = RunConfig(model=model, data=DataConfig(tokenizer=words, prompts=prompts))
    folder = TensorFolder(path)
    rules = {name: rule for rule in released_table(path, folder, model) for name in rule.ours}
    return Released(path=path, config=config, shapes=shapes_of(model), folder=folder, rules=rules)


def released_table(source: str | Place, folder: TensorFolder, config: MolmoConfig) -> Table:
    """The rename table of a released folder, or of the reference's checkpoint, whose every tensor has its shape.

    Raises ValueError with the key and both shapes for what does not fit.
    """
    table = molmo_names.detect(config, folder.names())
    shapes = shapes_of(config)
    head = next(rule for rule in table if rule.ours == (HEAD,))
    if head.theirs[0] not in folder:  # tied
        embedding = next(rule.theirs for rule in table if rule.ours == (EMBEDDING,))
        table = [replace(rule, theirs=embedding) if rule is head else rule for rule in table]
    for rule in table:
        wanted = rule.form.to_theirs(
            [torch.empty(shapes[name], device="meta") for name in rule.ours]
        )
        for key, want in zip(rule.theirs, wanted):
            compare(source, key, folder.shape(key) if key in folder else None, list(want.shape))
    used = {key for rule in table for key in rule.theirs}
    used |= {PAD_EMBED} if config.connector.padding_embed == "none" else set()
    for key in folder.names():
        if key not in used and not key.endswith(IGNORED):
            compare(source, key, folder.shape(key), None)
    return table


def untied(config: MolmoConfig) -> MolmoConfig:
    """The architecture with a head of its own: servers want one."""
    return replace(config, text=replace(config.text, tie_word_embeddings=False))


def shapes_of(config: MolmoConfig) -> dict[str, list[int]]:
    """Name -> shape of every tensor of a model, without making it."""
    with torch.device("meta"):
        return {
            name: list(p.shape)
            for name, p in Molmo(config).named_parameters(remove_duplicate=False)
        }


def compare(
    source: str | Place, name: str, shape: Iterable[int] | None, want: list[int] | None
) -> None:
    """ValueError unless the shape of a tensor of `source` is what the configuration asks for; None = no such tensor."""
    if want is None:
        raise ValueError(
            f"{source} holds a tensor '{name}' {shape} that the configuration has no place for."
        )
    if shape is None:
        raise ValueError(f"{source} has no tensor '{name}', which should have shape {want}.")
    if shape != want:
        raise ValueError(
            f"{source}: tensor '{name}' has shape {shape} and the configuration asks for {want}."
        )
