"""Settings that TRL declares: of the type they are declared with, and what TRL refuses told as our own are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hf_mass.errors import ConfigError, HFMassError

_FLOAT_MAX: Any = sys.float_info.max  # NaN is not below it
_WORDS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text", dict: "a dict"}


@cache
def plain_kinds(cls: Any) -> dict[str, tuple[type, ...]]:
    """Field → its types, of those fields that are numbers, texts, switches or dicts and nothing else."""
    kinds = {}
    for name, hint in get_type_hints(cls).items():
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        plain = tuple(get_origin(member) or member for member in members)
        if all(member in (*_WORDS, NoneType) for member in plain):
            kinds[name] = plain
    return kinds


def check_types(config: Any) -> None:
    """Checks the fields of a trainer's config that are no settings of ours; None stands wherever it is the default.

    Raises:
        ConfigError: If a value is of another type than its field is declared with, or not finite.
    """
    cls: Any = type(config)
    kinds, ours = plain_kinds(cls), getattr(cls, "__settings__", {})
    for field in fields(cls):
        value = getattr(config, field.name, None)
        if field.name not in kinds or field.name in ours or value is None or value is field.default:
            continue
        if is_dataclass(value):  # what transformers makes of a dict or a text, where a config is made again
            continue
        if not any(_is_of(value, kind) for kind in kinds[field.name]):
            words = " or ".join(_WORDS[kind] for kind in kinds[field.name] if kind is not NoneType)
            raise ConfigError(f"{cls.__name__}.{field.name} is {value!r:.200}; choose {words}.")


@contextmanager
def refused_by_trl(config: Any) -> Iterator[None]:
    """Within this context what TRL or transformers refuse is a `ConfigError` of one line."""
    try:
        yield
    except HFMassError:
        raise
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ConfigError(f"{type(config).__name__}: {' '.join(str(error).split())}") from error


def _is_of(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is int:
        return isinstance(value, Integral) and abs(int(value)) < 2**63
    if kind is float:
        return isinstance(value, Real) and bool(abs(value) < _FLOAT_MAX)
    return isinstance(value, str | Path if kind is str else kind)
