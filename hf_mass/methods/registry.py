"""Methods by name: those of this package, registered ones, and `package.module:Class` of anybody's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

from hf_mass.errors import ConfigError
from hf_mass.methods.base import Method
from hf_mass.methods.mass import MASS, OFFERED
from hf_mass.methods.sequence import TTTThenMASS
from hf_mass.methods.settings import flat
from hf_mass.methods.ttt import TTT
from hf_mass.methods.ttt_settings import ASKED_ONCE, TTTSettings
from hf_mass.methods.unadapted import MajorityVote, NoAdaptation

Maker = TypeVar("Maker", bound=Callable[..., Method[Any]])
_NONE_IS_A_VALUE = {name for name, option in flat(TTTSettings).items() if option.allows(None)}
_TTT_NAMES, _MASS_NAMES = set(flat(TTTSettings)), {*OFFERED, "prompt_format"}


def _ttt(settings: Mapping[str, Any]) -> TTT:
    changes = {n: v for n, v in settings.items() if n in _TTT_NAMES and (n, type(v)) != ("vote", bool)}
    return TTT(**{**(ASKED_ONCE if settings.get("vote") is False else {}), **changes})


def _mass(settings: Mapping[str, Any]) -> MASS:
    return MASS(asks=_ttt(settings), **{n: v for n, v in settings.items() if n in _MASS_NAMES})


METHODS: dict[str, Callable[[Mapping[str, Any]], Method[Any]]] = {
    "none": lambda settings: NoAdaptation(),
    "mass": _mass,
    "ttt": _ttt,
    "both": lambda settings: TTTThenMASS(_ttt(settings), _mass(settings)),
    "vote": lambda settings: MajorityVote(asks=_mass(settings)),
}
"""Name → what makes the method from settings by their flat names, of which it takes its own."""


def register_method(name: str) -> Callable[[Maker], Maker]:
    """A decorator that makes a class of methods known as `name`, to `hf_mass.adapt` and the command line.

    Raises:
        ConfigError: If the name is taken.
    """

    def register(maker: Maker) -> Maker:
        if name in METHODS:
            raise ConfigError(f"There is a method {name!r} already. Choose another name.")
        METHODS[name] = lambda settings: maker()
        return maker

    return register


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method[Any]:
    """The method called `name`.

    Args:
        name: One of `METHODS`, or "package.module:Class", which is imported and called without arguments.
        settings: Flat name → value; None stands for the model's own where it is no value of the setting. `vote=False`
            asks once, without a vote.

    Raises:
        ConfigError: If there is no such method or setting, or a value is out of its range.
    """
    values = {key: value for key, value in (settings or {}).items() if value is not None or key in _NONE_IS_A_VALUE}
    if unknown := sorted(set(values) - _TTT_NAMES - _MASS_NAMES):
        raise ConfigError(
            f"There is no setting {unknown[0]!r:.60} of methods; choose some of {sorted(_TTT_NAMES | _MASS_NAMES)}."
        )
    if name in METHODS:
        return METHODS[name](values)
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"method is {name!r:.60}; choose one of {list(METHODS)}, or give package.module:Class.")
    try:
        return getattr(import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"method {name!r:.60} cannot be imported: {error!s:.300}. Give package.module:Class."
        ) from error
