"""YAML and dotted overrides become a RunConfig and back; the only importer of omegaconf."""

import contextlib
import dataclasses
import difflib
import io
import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from molmo_ds import architecture, config, files, presets, rules
from molmo_ds.architecture import MolmoConfig
from molmo_ds.config import RunConfig
from molmo_ds.setting_list import Setting, entry, legal, settings

# of eight, without an o, and of sixty
OTHER_BASES = re.compile(r"[-+]?(?:0[0-7_]+|[0-9][0-9_]*(?::[0-9]+)+(?:\.[0-9_]*)?)")
NOTHING = ("", "null", "~")
NAMED = ("data.sources", "data.group_rates", "evaluators")  # blocks whose entries have free names
ERRORS = (
    OmegaConfBaseException,
    yaml.YAMLError,
    UnicodeDecodeError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
)
LOADER = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # as OmegaConf's: libyaml takes tabs that PyYAML refuses


class NoSuchEntry(ValueError):
    """An override of an entry that is not there; its sentence is whole."""


def load(
    path: str | Path | list[str] | None = None, overrides: list[str] | tuple[str, ...] = ()
) -> RunConfig:
    """Preset, then YAML file (or several, the later over the earlier), then `a.b=value` overrides.

    `--a.b=value` means the same, `--a.b` is true, `a.0=value` is an entry of a list. `data.sources.NAME=null` and
    `evaluators.NAME=null` take an entry away. Of `max_steps` and `epochs` the one that is given later counts.

    Raises ValueError with a sentence for every mistake: the key, its value and what it may be, for an unknown key the
    nearest right one.
    """
    given = _read(path, overrides)
    preset = given.get("preset", RunConfig.preset)
    mistakes = []
    try:
        model = presets.get(preset) if isinstance(preset, str) else MolmoConfig()
    except ValueError as error:
        mistakes.append(str(error))
        model = MolmoConfig()
    base = to_dict(RunConfig(model=model))
    values = _over(base, given)
    prompts = values["data"]["prompts"] if isinstance(values["data"], dict) else {}
    for one in values["evaluators"].values() if isinstance(values["evaluators"], dict) else ():
        if isinstance(one, dict) and isinstance(one.get("prompts"), dict):
            one["prompts"] = _over(prompts, one["prompts"])
    try:
        made = _validate(RunConfig, values)
    except ValidationError as error:
        raise ValueError(rules.together(mistakes + _sentences(error, RunConfig))) from None
    mistakes += [sentence for wrong, sentence in rules.run(made) if wrong]
    if mistakes:
        raise ValueError(rules.together(mistakes))
    return made


def read_yaml(path: str | files.Place) -> DictConfig:
    """A YAML file of settings, local or remote; ValueError names the file, and the line where it cannot be read."""
    file = files.place(path)
    if not file.is_file():
        raise ValueError(f"There is no configuration file {path}; give the path of a YAML file.")
    try:
        remote = isinstance(file, files.Remote)
        text = file.read_text() if remote else file.read_text(encoding="utf-8-sig")
        given = OmegaConf.load(io.StringIO(text))
        root = yaml.compose(text, Loader=LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark else ""
        reason = error.problem or error.context
        raise ValueError(f"{path}{where} is not YAML: {' '.join(str(reason).split())}.") from None
    except ERRORS as error:
        reason = (
            "it is no text in UTF-8"
            if isinstance(error, UnicodeDecodeError)
            else _first_line(error)
        )
        raise ValueError(f"{path} is not YAML: {reason}.") from None
    if not given:
        raise ValueError(
            f"{path} is empty; write lines such as `max_steps: 1000`, or leave the file out."
        )
    if not OmegaConf.is_dict(given):
        raise ValueError(
            f"{path} holds no settings; write lines such as `max_steps: 1000`, not a list."
        )
    _refuse_other_bases(root, str(path), "\n" in text)
    return given


def _refuse_other_bases(root: yaml.Node | None, where: str, lines: bool) -> None:
    """ValueError for a number that YAML reads as another than it looks like: 010 is 8 there, 1:30 is 90."""
    nodes = [root]
    seen = set()  # what an anchor names comes more than once
    while nodes:
        node = nodes.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            nodes += [one for pair in node.value for one in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif node.tag.endswith((":int", ":float")) and OTHER_BASES.fullmatch(node.value):
            line = f" in line {node.start_mark.line + 1}" if lines else ""
            raise ValueError(
                f"{where} has {node.value}{line}, which YAML reads as {yaml.safe_load(node.value)};"
                " write the number that is meant, or a text in quotes."
            )


def changed(made: Any, overrides: list[str] | tuple[str, ...]) -> Any:
    """A dataclass of settings with `a.b=value` overrides; ValueError as of `from_dict`."""
    return from_dict(type(made), _over(to_dict(made), _read(None, overrides, type(made))))


def read_values(path: str | files.Place) -> dict[str, Any]:
    """A YAML file's settings as plain values, not checked; ValueError as of `read_yaml`."""
    return _read(path, ())


def _read(
    path: str | Path | list[str] | None,
    overrides: list[str] | tuple[str, ...],
    kind: type = RunConfig,
) -> dict[str, Any]:
    given = OmegaConf.create()
    for file in path if isinstance(path, list) else [path] if path else []:
        more = read_yaml(file)
        if more.get("max_steps") is not None and more.get("epochs") is not None:
            raise ValueError(f"{file} gives both max_steps and epochs; leave one out.")
        given = _lay(given, more)
    for word in overrides:
        if (
            word.encode(errors="ignore").decode() != word
        ):  # what Python makes of bytes that are none
            raise ValueError(f"The override {ascii(word)} is no text in UTF-8; write it again.")
        line = _as_yaml(word, kind)
        with contextlib.suppress(yaml.YAMLError):  # which is told below
            root = yaml.compose(line.partition("=")[2], Loader=LOADER)
            _refuse_other_bases(root, f"The override '{word}'", lines=False)
        try:
            given = _lay(given, OmegaConf.from_dotlist([line]), line)
        except NoSuchEntry:
            raise
        except ERRORS as error:
            raise ValueError(
                f"The override '{word}' cannot be read: {_first_line(error)}."
            ) from None
    try:
        return OmegaConf.to_container(given, resolve=True, throw_on_missing=True)
    except ERRORS as error:
        raise ValueError(
            f"The configuration has a value that cannot be read: {_first_line(error)}."
        ) from None


def _lay(given: DictConfig, more: DictConfig, line: str = "") -> DictConfig:
    """`more` over `given`; `line` is the override KEY=VALUE that `more` was made of."""
    for key, other in (("max_steps", "epochs"), ("epochs", "max_steps")):
        if more.get(key) is not None:
            given.pop(other, None)
    for block in NAMED:
        there = OmegaConf.select(given, block)
        entries = OmegaConf.select(more, block)
        for name in [name for name in entries or () if entries[name] is None]:
            if not there or name not in there:
                names = ", ".join(there or ()) or "none"
                raise NoSuchEntry(
                    f"There is no {block}.{name} to take away; of {block} there are: {names}."
                )
            del there[name], entries[name]
    key = line.partition("=")[0]
    above, _, last = key.rpartition(".")
    entries = OmegaConf.select(given, above) if last.isdigit() else None
    if OmegaConf.is_list(entries):
        whole = _with_entries(list(entries), {last: OmegaConf.select(more, key)}, above)
        OmegaConf.update(given, above, whole)
        return given
    given.merge_with(more)
    return given


def flag(word: str) -> bool:
    """Whether a word of the command line is `--NAME` of a setting that is true or false."""
    setting = _setting_of(word.removeprefix("--").split("."), settings(RunConfig))
    return word.startswith("--") and setting is not None and setting.hint is bool


def overridden(words: list[str]) -> list[str]:
    """A sentence for each override of the command line that a later one takes back."""
    last: dict[str, str] = {}
    twice: dict[str, None] = {}
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        value = value or str(flag(word)).lower()
        if last.get(name, value) != value:
            twice[name] = None
        last.pop(name, None)
        last[name] = value
    lengths = [name for name in last if name in ("max_steps", "epochs")]
    said = [f"{name} is given more than once; {name}={last[name]} counts." for name in twice]
    if len(lengths) > 1:
        said.append(f"Of max_steps and epochs the later one counts, {lengths[1]}.")
    return said


def _as_yaml(word: str, kind: type) -> str:
    word = f"{word}=true" if flag(word) else word
    key, separator, value = word.removeprefix("--").partition("=")
    keys = key.split(".")
    if not separator or not all(keys):
        raise ValueError(
            f"'{word}' is not an override; write key=value, for example model.vision.hidden_size=64."
        )
    setting = _setting_of(keys, settings(kind))
    if setting is not None and setting.is_text and value not in NOTHING and value[0] not in "'\"":
        value = json.dumps(
            value, ensure_ascii=False
        )  # a text as it stands: 007 is no number, and what follows # no comment
    return f"{key}={value}"


def _over(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` over `base`, block by block."""
    out = base | given
    for key, value in given.items():
        if isinstance(base.get(key), dict) and isinstance(value, dict):
            out[key] = _over(base[key], value)
        elif isinstance(base.get(key), list) and isinstance(value, dict):
            out[key] = _with_entries(base[key], value, key)
    return out


def _with_entries(entries: list[Any], given: dict[str, Any], key: str) -> Any:
    """A list with some entries replaced, by their numbers; the one after the last is added."""
    numbers = {str(name): value for name, value in given.items()}
    if not numbers or not all(name.isdigit() for name in numbers):
        return given  # a block where a list belongs, which the check will say
    entries = list(entries)
    for name in sorted(numbers, key=int):
        if int(name) > len(entries):
            raise NoSuchEntry(
                f"There is no entry {name} of {key}, which has {len(entries)}; give the whole list: {key}=[...]."
            )
        entries[int(name) : int(name) + 1] = [numbers[name]]
    return entries


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def save(made: Any, path: str | Path) -> None:
    """Write a dataclass as YAML that `load` (or `from_dict`) reads back."""
    values = to_dict(made)
    if values.get("epochs") is not None:  # which is instead of them
        del values["max_steps"]
    Path(path).write_text(yaml.safe_dump(values, sort_keys=False))


def to_dict(made: Any) -> dict[str, Any]:
    """Plain dictionaries, lists and numbers."""
    return json.loads(json.dumps(dataclasses.asdict(made)))


def from_dict(kind: type, values: dict[str, Any]) -> Any:
    """The inverse of `to_dict` for one dataclass.

    Raises ValueError, a sentence for every mistake, for unknown keys, wrong values and an architecture that cannot be.
    """
    try:
        made = _validate(kind, values)
    except ValidationError as error:
        raise ValueError(rules.together(_sentences(error, kind))) from None
    if kind is MolmoConfig:
        rules.refuse(rules.model(made, ""))
    if kind is RunConfig:
        rules.refuse(rules.model(made.model))
    return made


@contextlib.contextmanager
def in_sentences(what: str) -> Iterator[None]:
    """Turn the errors of dataclasses inside the block into sentences about `what`, a file for example."""
    try:
        yield
    except ValidationError as error:
        home = architecture if hasattr(architecture, error.title) else config
        raise ValueError(
            f"{what}: {rules.together(_sentences(error, getattr(home, error.title)))}"
        ) from None


@lru_cache
def _adapter(kind: type) -> TypeAdapter:
    return TypeAdapter(kind)


def _validate(kind: type, values: dict[str, Any]) -> Any:
    # as JSON, in which lists are tuples and 1 is no truth value
    return _adapter(kind).validate_json(json.dumps(values, default=str))


def _sentences(error: ValidationError, kind: type) -> list[str]:
    """One sentence per mistake, each key once."""
    known = settings(kind)
    said: dict[str, str] = {}
    for mistake in error.errors():
        keys = [str(part) for part in mistake["loc"]]
        key = ".".join(keys)
        if mistake["type"] == "unexpected_keyword_argument":
            said[key] = (
                f"There is no setting '{key}'; the nearest one is '{nearest(key, [one.name for one in known])}'."
            )
            continue
        setting = _setting_of(keys, known)
        if setting is not None:
            said.setdefault(".".join(keys[: setting.depth]), _wrong_value(keys, mistake, setting))
        else:
            said[key] = (
                f"{key or 'The configuration'} is {_shown(mistake['input'])}; it must be a block of settings."
            )
    return list(said.values())


def _setting_of(keys: list[str], known: Iterable[Setting]) -> Setting | None:
    """The setting of a place, which may lie inside its list or dictionary."""
    for setting in known:
        if len(keys) >= setting.depth and all(
            p in ("<name>", k) for p, k in zip(setting.name.split("."), keys)
        ):
            return setting
    return None


def _wrong_value(keys: list[str], mistake: Any, setting: Setting) -> str:
    key = ".".join(keys[: setting.depth])
    inside = keys[setting.depth :]
    value = mistake["input"]
    if mistake["type"] == "value_error":  # of a check of our own
        return f"{key} is {_shown(value)}: {mistake['ctx']['error']}."
    # an entry of a list or dictionary
    if inside and mistake["type"] not in ("missing", "too_long"):
        spot = f"{key}[{inside[0]}]" if inside[0].isdigit() else f"{key}.{inside[0]}"
        sentence = f"{spot} is {_shown(value)}; it must be {legal(entry(setting.hint))}"
    else:
        sentence = f"{key} is {_shown(value)}; it must be {legal(setting.hint)}"
    if setting.choices and isinstance(value, str):
        sentence += f"; the nearest is {difflib.get_close_matches(value, setting.choices, n=1, cutoff=0.0)[0]}"
    if setting.is_text and isinstance(value, int | float) and not isinstance(value, bool):
        sentence += f""" (a text of digits needs quotes of its own: {key}='"{value}"')"""
    return sentence + "."


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    text = text.replace('"', "'") if isinstance(value, str) else text
    return text if len(text) < 80 else text[:76] + " ..."


def nearest(key: str, known: list[str]) -> str:
    """The known key that was meant, most likely: one with the same last word, else the most similar."""
    last = key.rsplit(".", 1)[-1]
    words = sorted({name.rsplit(".", 1)[-1] for name in known})
    word = difflib.get_close_matches(last, words, n=1, cutoff=0.75)
    same = [name for name in known if word and name.rsplit(".", 1)[-1] == word[0]]
    return difflib.get_close_matches(key, same or known, n=1, cutoff=0.0)[0]
