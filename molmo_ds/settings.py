"""YAML and dotted overrides become a RunConfig and back; the only importer of omegaconf."""

import contextlib
import difflib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from molmo_ds import presets, rules
from molmo_ds.config import MolmoConfig, RunConfig
from molmo_ds.setting_list import Setting, legal, settings

ERRORS = (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, OSError, ValueError, TypeError, KeyError)


def load(path: str | Path | None = None, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Preset, then YAML file, then `a.b=value` overrides (`--a.b=value` means the same).

    Raises ValueError with a sentence for every mistake: the key, its value and what it may be, for an unknown key the
    nearest right one.
    """
    given = read_yaml(path) if path is not None else {}
    given = _merge(given, _read_overrides(overrides))
    preset = given.get("preset", RunConfig.preset)
    mistakes = []
    try:
        model = presets.get(preset) if isinstance(preset, str) else MolmoConfig()
    except ValueError as error:
        mistakes.append(str(error))
        model = MolmoConfig()
    base = to_dict(RunConfig(model=model))
    try:
        config = _validate(RunConfig, _merge(base, given))
    except ValidationError as error:
        raise ValueError(rules.together(mistakes + _sentences(error, RunConfig))) from None
    mistakes += [sentence for wrong, sentence in rules.run(config) if wrong]
    if mistakes:
        raise ValueError(rules.together(mistakes))
    return config


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file of settings; ValueError names the file, and the line where it cannot be read."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"There is no configuration file {path}; give the path of a YAML file.")
    try:
        given = OmegaConf.load(file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark else ""
        reason = error.problem or error.context
        raise ValueError(f"{path}{where} is not YAML: {' '.join(str(reason).split())}.") from None
    except ERRORS as error:
        reason = "it is no text in UTF-8" if isinstance(error, UnicodeDecodeError) else _first_line(error)
        raise ValueError(f"{path} is not YAML: {reason}.") from None
    if not OmegaConf.is_dict(given):
        raise ValueError(f"{path} holds no settings; write lines such as `max_steps: 1000`, not a list.")
    return _plain(given, str(path))


def _read_overrides(overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    words = [word.removeprefix("--") for word in overrides]
    for word in words:
        key, separator, _ = word.partition("=")
        if not separator or not all(key.split(".")):
            raise ValueError(f"'{word}' is not an override; write key=value, for example model.vision.hidden_size=64.")
    given: dict[str, Any] = {}
    for word in words:
        try:
            given = _merge(given, _plain(OmegaConf.from_dotlist([word]), word))
        except ERRORS as error:
            raise ValueError(f"The override '{word}' cannot be read: {_first_line(error)}.") from None
    return given


def _merge(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` over `base`, block by block."""
    both = {key: _merge(base[key], given[key]) for key in given if _is_block(base.get(key)) and _is_block(given[key])}
    return base | given | both


def _is_block(value: Any) -> bool:
    return isinstance(value, dict)


def _plain(given: Any, where: str) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(given, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{where} has a value that cannot be read: {_first_line(error)}.") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def save(config: Any, path: str | Path) -> None:
    """Write a dataclass as YAML that `load` (or `from_dict`) reads back."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dictionaries, lists and numbers."""
    return _adapter(type(config)).dump_python(config, mode="json")


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
def in_sentences(kind: type, what: str) -> Iterator[None]:
    """Whatever a dataclass of settings refuses inside the block is said in sentences about `what`."""
    try:
        yield
    except ValidationError as error:
        raise ValueError(f"{what}: {rules.together(_sentences(error, kind))}") from None


@lru_cache
def _adapter(kind: type) -> TypeAdapter:
    return TypeAdapter(kind)


def _validate(kind: type, values: dict[str, Any]) -> Any:
    # as JSON, in which lists are tuples and 1 is no truth value
    return _adapter(kind).validate_json(json.dumps(values, default=str))


def _sentences(error: ValidationError, kind: type) -> list[str]:
    """One sentence per mistake, each key once."""
    known = {setting.name: setting for setting in settings(kind)}
    said: dict[str, str] = {}
    for mistake in error.errors():
        keys = [str(part) for part in mistake["loc"]]
        key = ".".join(keys)
        if mistake["type"] == "unexpected_keyword_argument":
            said[key] = f"There is no setting '{key}'; the nearest one is '{nearest(key, known)}'."
            continue
        setting = _setting_of(keys, known)
        if setting is not None:
            said.setdefault(".".join(keys[: setting.depth]), _wrong_value(keys, mistake, setting))
        else:
            said[key] = f"{key or 'The configuration'} is {_shown(mistake['input'])}; it must be a block of settings."
    return list(said.values())


def _setting_of(keys: list[str], known: dict[str, Setting]) -> Setting | None:
    """The setting that a place belongs to, which may lie inside its list or dictionary."""
    for setting in known.values():
        if len(keys) >= setting.depth and all(p in ("<name>", k) for p, k in zip(setting.name.split("."), keys)):
            return setting
    return None


def _wrong_value(keys: list[str], mistake: Any, setting: Setting) -> str:
    key = ".".join(keys[: setting.depth])
    inside = keys[setting.depth :]
    value = mistake["input"]
    if mistake["type"] == "value_error":  # of a check of our own
        return f"{key} is {_shown(value)}: {mistake['ctx']['error']}."
    spot = f"{key}[{inside[0]}]" if inside and mistake["type"] != "missing" else key
    sentence = (
        f"{spot} is {_shown(value)}; {'each' if spot != key else 'it'} must be {legal(setting.hint, spot != key)}"
    )
    if setting.choices and isinstance(value, str):
        sentence += f"; the nearest is {difflib.get_close_matches(value, setting.choices, n=1, cutoff=0.0)[0]}"
    if setting.is_text and isinstance(value, int | float) and not isinstance(value, bool):
        sentence += f""" (a text of digits needs quotes of its own: {key}='"{value}"')"""
    return sentence + "."


def _shown(value: Any) -> str:
    text = "null" if value is None else json.dumps(value, default=str)
    text = text.replace('"', "'") if isinstance(value, str) else text
    return text if len(text) < 80 else text[:76] + " ..."


def nearest(key: str, known: dict[str, Setting]) -> str:
    """The known key that was meant, most likely: one with the same last word, else the most similar."""
    last = key.rsplit(".", 1)[-1]
    words = sorted({name.rsplit(".", 1)[-1] for name in known})
    word = difflib.get_close_matches(last, words, n=1, cutoff=0.75)
    same = [name for name in known if word and name.rsplit(".", 1)[-1] == word[0]]
    return difflib.get_close_matches(key, same or list(known), n=1, cutoff=0.0)[0]
