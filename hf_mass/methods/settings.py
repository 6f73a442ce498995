"""Settings, declared once: a dataclass beside the method says what each is, and whoever offers them asks it.

    @dataclass(frozen=True)
    class InnerConfig:
        steps: int = setting(1, "Steps of the inner loop.", name="inner_steps", least=1)

        def __post_init__(self) -> None:
            check(self)

`flat(InnerConfig)` lists the settings for a command line or a form, under flat names. `declares(InnerConfig)` gives a
trainer's config a field for each, and `build(InnerConfig, config)` makes the settings of that config again.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import GenericAlias, NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hf_mass.errors import ConfigError
from hf_mass.tasks.checks import shown

T = TypeVar("T")
_OPTION = "option"


@dataclass(frozen=True)
class Option:
    """One setting as it is offered.

    Args:
        name: Its flat name, under which trainers and the command line offer it.
        kind: The type of the settings' own field.
        default: What it is if nobody says otherwise.
        help: What it does.
        least: Lowest value.
        most: Highest value.
        above: What it must be above.
        below: What it must be below.
        choices: The values that it can have; of a list, those of its entries.
        metavar: What a usage line shows for the value.
    """

    name: str
    kind: Any
    default: Any
    help: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None
    metavar: str | None = None

    @property
    def type(self) -> Any:
        """The type for a parser of words: a list for a tuple, and None for the one text that stands for a list."""
        members = _members(self.kind)
        lists = [GenericAlias(list, get_args(each)[:1]) for each in members if get_origin(each) in (tuple, list)]
        if not lists:
            return self.kind
        return lists[0] | None if len(members) > 1 else lists[0]

    @property
    def cure(self) -> str:
        """The values that it can have, in words."""
        return " or ".join(dict.fromkeys(self._words(member) for member in _members(self.kind)))

    def _words(self, kind: Any) -> str:
        if kind is NoneType:
            return "None"
        items = get_args(kind) if get_origin(kind) in (tuple, list) else ()
        if self.choices is not None:
            return f"{'at least one' if items else 'one'} of {list(self.choices)}"
        one, many = _NOUNS.get(items[0] if items else kind, (f"a {getattr(kind, '__name__', kind)}", "values"))
        if items:
            one = f"a list of {many}" if Ellipsis in items or get_origin(kind) is list else f"{len(items)} {many}"
        bounds = (("of at least", self.least), ("above", self.above), ("of at most", self.most), ("below", self.below))
        limits = " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)
        return f"{one} {limits}" if limits and kind is not str else one

    def allows(self, value: Any, kind: Any = None) -> bool:
        """Whether a value is of the type (or of another `kind`), in the range and among the choices."""
        if not _fits(value, self.kind if kind is None else kind):
            return False
        if isinstance(value, tuple | list):
            return (bool(value) or self.choices is None) and all(self._in_range(item) for item in value)
        return value is None or self._in_range(value)

    def _in_range(self, value: Any) -> bool:
        return (
            (self.choices is None or value in self.choices)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def parts(self) -> list[Option]:
        """Itself, or of a tuple of fixed length one numbered option for each entry (`betas`: `beta1`, `beta2`)."""
        kinds = get_args(self.kind)
        if get_origin(self.kind) is not tuple or Ellipsis in kinds or len(kinds) < 2:
            return [self]
        numbered = enumerate(zip(kinds, self.default, strict=True), 1)
        return [replace(self, name=f"{self.name}{i}", kind=kind, default=value) for i, (kind, value) in numbered]

    def field(self) -> Any:
        """A dataclass field for `HfArgumentParser`, whose metadata are arguments of `argparse`."""
        about = {"help": self.help, "choices": self.choices, "metavar": self.metavar}
        value = list(self.default) if isinstance(self.default, tuple) else self.default
        if self.type != self.kind and not isinstance(value, list):
            value = None
        return _field(value, {name: entry for name, entry in about.items() if entry is not None})


_NOUNS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a finite number", "finite numbers"),
    bool: ("True or False", "True or False"),
    str: ("a text", "texts"),
}


def setting(default: Any, help: str, *, name: str = "", **rule: Any) -> Any:
    """A field of a settings dataclass.

    Args:
        default: Its default; a list, a dict or a set is copied for each instance.
        help: What it does, with its unit. It is the only documentation of the setting.
        name: Its flat name; default: the field's own. A tuple of fixed length is offered as one option for each entry,
            numbered from 1.
        rule: `least`, `most`, `above`, `below`, `choices` and `metavar` of `Option`.
    """
    return _field(default, {"help": help, _OPTION: Option(name, Any, default, help, **rule)})


def _field(default: Any, metadata: Mapping[str, Any]) -> Any:
    if isinstance(default, list | dict | set):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _option(name: str, declared: Field[Any], kind: Any) -> Option:
    option: Option = declared.metadata[_OPTION]
    return replace(option, name=option.name or name, kind=kind)


@cache
def options_of(cls: type) -> dict[str, Option]:
    """Field → option of a settings dataclass, without those nested in it."""
    kinds = get_type_hints(cls)
    return {f.name: _option(f.name, f, kinds[f.name]) for f in fields(cls) if _OPTION in f.metadata}


def check(instance: Any) -> None:
    """Checks each setting of a dataclass; to be called from `__post_init__`. A list becomes a tuple.

    Raises:
        ConfigError: If a value is not of its type, outside its range or not among its choices.
    """
    cls: Any = type(instance)
    offered: dict[str, Option] = getattr(cls, "__settings__", {})
    for name, option in (offered or options_of(cls)).items():
        value = getattr(instance, name)
        if not (option.allows(value) or (offered and option.allows(value, option.type))):
            label = f"{cls.__name__}.{name}" if option.name == name else option.name
            raise ConfigError(f"{label} is {shown(value, 200)}; choose {option.cure}.")
        if isinstance(value, list) and not offered:
            object.__setattr__(instance, name, tuple(value))


def require_targets(name: str, targets: str | tuple[str, ...]) -> None:
    """Checks the names of modules, or the pattern for their names.

    Raises:
        ConfigError: If it is no pattern.
    """
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(
                f"{name} is {shown(targets, 200)}, which is no pattern: {error}. Give a list of names, or 'all-linear'."
            ) from error


def flat(*classes: type) -> dict[str, Option]:
    """Flat name → option of settings dataclasses and of those nested in them, in the order of their fields.

    Raises:
        ConfigError: If two settings have the same flat name.
    """
    options: dict[str, Option] = {}
    for option in (part for cls in classes for declared in _walk(cls) for part in declared.parts()):
        if option.name in options:
            raise ConfigError(f"Two settings are called {option.name!r}; give one of them another `name`.")
        options[option.name] = option
    return options


def _walk(cls: type) -> Iterator[Option]:
    for option in options_of(cls).values():
        if is_dataclass(option.kind):
            yield from _walk(option.kind)  # type: ignore[arg-type]
        else:
            yield option


def declares(*classes: type, without: tuple[str, ...] = (), **defaults: Any) -> Callable[[type[T]], type[T]]:
    """A decorator, below `@dataclass`, that gives a class a field for each setting of others.

    What the class declares itself stays. Its own fields made with `setting` are offered like the others, and `check`
    checks all of them.

    Args:
        classes: Settings dataclasses.
        without: Flat names to leave out.
        defaults: Flat name → default, where it is not that of the setting.

    Raises:
        ConfigError: If a name is none of the settings.
    """
    options = flat(*classes)
    if unknown := sorted({*without, *defaults} - set(options)):
        raise ConfigError(f"There is no setting {unknown[0]!r}; choose some of {sorted(options)}.")

    def decorate(cls: type[T]) -> type[T]:
        kinds, resolved = dict(cls.__annotations__), get_type_hints(cls)
        values = {name: vars(cls).get(name) for name in kinds}
        offered = {
            name: _option(name, value, resolved[name])
            for name, value in values.items()
            if isinstance(value, Field) and _OPTION in value.metadata
        }
        for name, option in options.items():
            if name not in values and name not in without:
                offered[name] = replace(option, default=defaults.get(name, option.default))
                kinds[name] = option.type
        for name, option in offered.items():
            setattr(cls, name, option.field())
        cls.__annotations__ = kinds
        cls.__settings__ = {**getattr(cls, "__settings__", {}), **offered}  # type: ignore[attr-defined]
        return cls

    return decorate


def build(cls: type[T], values: Any) -> T:
    """The settings of a class, nested ones too, from flat names: the keys of a mapping or the attributes of an object.

    What is missing, or None where that is no value of the setting, takes its default.
    """
    entries = values if isinstance(values, Mapping) else vars(values)
    arguments: dict[str, Any] = {}
    for name, kind in get_type_hints(cls).items():
        if _nested(kind):
            arguments[name] = build(kind, entries)
            continue
        parts = [entries.get(each, MISSING) for each in _flat_names(cls, name)]
        missing = [part is MISSING or (part is None and not _fits(None, kind)) for part in parts]
        if len(parts) > 1 and not all(missing):  # of a tuple some entries may be given
            defaults = options_of(cls)[name].default  # type: ignore[arg-type]
            parts = [own if lacks else part for part, lacks, own in zip(parts, missing, defaults, strict=True)]
            arguments[name] = tuple(parts)
        elif not any(missing):
            arguments[name] = parts[0]
    return cls(**arguments)


def values_of(instance: Any) -> dict[str, Any]:
    """The inverse of `build`: flat name → value, and what is no setting under its own name."""
    values: dict[str, Any] = {}
    kinds = get_type_hints(type(instance))
    for name, value in vars(instance).items():
        names = _flat_names(type(instance), name)
        if _nested(kinds[name]):
            values |= values_of(value)
        else:
            values |= zip(names, value if len(names) > 1 else [value], strict=True)
    return values


def _nested(kind: Any) -> bool:
    return is_dataclass(kind) and bool(options_of(kind))  # type: ignore[arg-type]


def _flat_names(cls: type, name: str) -> list[str]:
    """One, or for a tuple of fixed length one for each entry."""
    option = options_of(cls).get(name)
    return [name] if option is None else [part.name for part in option.parts()]


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type: no bool for a number, a finite number for a float, a list for a tuple."""
    if kind is Any:
        return True
    if len(_members(kind)) > 1:
        return any(_fits(value, member) for member in _members(kind))
    if kind in (int, float):
        numbers = int if kind is int else int | float
        return isinstance(value, numbers) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if get_origin(kind) not in (tuple, list):
        return isinstance(value, kind)
    items = get_args(kind)
    if Ellipsis in items or get_origin(kind) is list:
        items = (items[0],) * (len(value) if isinstance(value, tuple | list) else 0)
    return isinstance(value, tuple | list) and len(value) == len(items) and all(map(_fits, value, items))
