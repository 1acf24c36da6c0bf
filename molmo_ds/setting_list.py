"""Every setting of a dataclass in a list: its dotted name, default, what it may be, and the comment on it."""

import dataclasses
import inspect
import io
import tokenize
import types
import typing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen


@dataclass(frozen=True)
class Setting:
    """One field of a configuration; a dictionary's entries are written `<name>`."""

    name: str
    hint: Any  # its type, with its range
    default: Any
    comment: str

    @property
    def depth(self) -> int:
        """Words of its name."""
        return self.name.count(".") + 1

    @property
    def choices(self) -> tuple[str, ...]:
        """Those of a Literal, or of a list of them; empty for another type."""
        return next(
            (
                typing.get_args(hint)
                for hint in _inside(self.hint)
                if typing.get_origin(hint) is Literal
            ),
            (),
        )

    @property
    def is_text(self) -> bool:
        """Whether it is any text."""
        hint = self.hint
        while typing.get_origin(hint) in (typing.Annotated, typing.Union, types.UnionType):
            hint = typing.get_args(hint)[0]
        return hint is str


@lru_cache
def settings(kind: type, prefix: str = "") -> tuple[Setting, ...]:
    """Every setting of a dataclass and of those inside it, in order."""
    hints = typing.get_type_hints(kind, include_extras=True)
    said = comments(kind)
    out: list[Setting] = []
    for item in dataclasses.fields(kind):
        hint = hints[item.name]
        name = prefix + item.name
        entry = typing.get_args(hint)[1] if typing.get_origin(hint) is dict else None
        if typing.get_origin(hint) is typing.Union:  # a block or null
            hint = next(
                (one for one in typing.get_args(hint) if dataclasses.is_dataclass(one)), hint
            )
        if dataclasses.is_dataclass(hint):
            out += settings(hint, name + ".")
        elif dataclasses.is_dataclass(entry):
            out += settings(entry, name + ".<name>.")
        else:
            default = (
                item.default if item.default is not dataclasses.MISSING else item.default_factory()
            )
            out.append(Setting(name, hint, default, said.get(item.name, "")))
    return tuple(out)


def comments(kind: type) -> dict[str, str]:
    """Field -> the comment on its line, or the one alone on the line above."""
    out: dict[str, str] = {}
    names = {item.name for item in dataclasses.fields(kind)}
    above = ""
    line: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(kind)).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            if not line:
                above = text
            elif line[0].string in names:
                out[line[0].string] = text
        elif token.type == tokenize.NEWLINE:
            if line and line[0].string in names and above:
                out.setdefault(line[0].string, above)
            above = ""
            line = []
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            line.append(token)
    return out


def legal(hint: Any) -> str:
    """The values of this type, in words."""
    origin = typing.get_origin(hint)
    parts = typing.get_args(hint)
    if origin is typing.Annotated:
        return f"{legal(parts[0])} {_limits(parts[1:])}".rstrip()
    if origin in (typing.Union, types.UnionType):
        words = ["null" if part is types.NoneType else legal(part) for part in parts]
        return ", or ".join(dict.fromkeys(words))
    if origin is Literal:
        return " or ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    if origin is tuple:
        number = "" if parts[-1] is Ellipsis else f" of {len(parts)}"
        return f"a list{number}, each {legal(parts[0])}"
    if origin is list:
        return f"a list, each {legal(parts[0])}"
    if origin is dict:
        return f"a block of names, each {legal(parts[1])}"
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        Any: "a value",
    }
    return words[hint]


def entry(hint: Any) -> Any:
    """The type of the entries of a list or dictionary."""
    inner = next(one for one in _inside(hint) if typing.get_origin(one) in (tuple, dict))
    parts = typing.get_args(inner)
    return parts[0] if typing.get_origin(inner) is tuple else parts[1]


def _limits(extras: tuple[Any, ...]) -> str:
    low = next((e.ge for e in extras if isinstance(e, Ge)), None)
    above = next((e.gt for e in extras if isinstance(e, Gt)), None)
    if any(isinstance(e, MinLen) for e in extras):
        return "(one at least)"
    high = next((e.le for e in extras if isinstance(e, Le)), None)
    below = next((e.lt for e in extras if isinstance(e, Lt)), None)
    if above is not None:
        return f"above {above}"
    if low is None:
        return ""
    if high is not None:
        return f"from {low} to {high}"
    return f"from {low} to below {below}" if below == 1 else f"of {low} or more"


def _inside(hint: Any) -> list[Any]:
    """A type and every type within it."""
    return [hint, *(part for inner in typing.get_args(hint) for part in _inside(inner))]


def help_text(kind: type) -> str:
    """Every setting with its default, what it may be, and its comment; one a line."""
    return "\n".join(
        f"  {setting.name} = {setting.default!r}  ({legal(setting.hint)})"
        + (f"  {setting.comment}" if setting.comment else "")
        for setting in settings(kind)
    )
