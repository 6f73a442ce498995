"""Several options that a command takes as one argument: which model, and settings, made from their own declarations."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer

from hf_mass.cli.options import METHODS, AsJson, ModelChoice, Quiet, Seed, option
from hf_mass.errors import ConfigError
from hf_mass.methods.mass_settings import MassConfig
from hf_mass.methods.settings import Option, flat
from hf_mass.methods.ttt_settings import TTTSettings
from hf_mass.tasks.checks import shown
from hf_mass.tasks.formats import FORMATS

MASS, TTT = "MASS", "Test-time training"
OFFERED = {
    **dict.fromkeys(("samples", "inner_steps", "inner_learning_rate", "weigh_by"), MASS),
    **dict.fromkeys(("max_examples", "num_train_epochs", "learning_rate", "vote"), TTT),
}
"""Settings that have an option of their own → panel of the help; --set takes every other."""
SETTINGS = {
    **flat(MassConfig),
    **flat(TTTSettings),
    "prompt_format": Option("prompt_format", str, None, "Prompts of MASS.", choices=tuple(sorted(FORMATS))),
}


def taking(**makers: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: in place of an argument typer sees the arguments of what makes it."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        written = signature(command, eval_str=True)
        groups = {name: signature(make, eval_str=True).parameters for name, make in makers.items()}

        @wraps(command, updated=())
        def call(**values: Any) -> Any:
            for name, make in makers.items():
                values[name] = make(**{each: values.pop(each) for each in groups[name]})
            return command(**values)

        several = [groups.get(each.name, {each.name: each}).values() for each in written.parameters.values()]
        flattened = [each.replace(kind=Parameter.KEYWORD_ONLY) for some in several for each in some]
        call.__signature__ = Signature(flattened)  # type: ignore[attr-defined]
        return call

    return decorate


Vote = Annotated[
    bool,
    option("--vote/--no_vote", "Ask under several transformations of the problem and vote, or ask once.", panel=TTT),
]
Assignments = Annotated[
    list[str] | None,
    option(
        "--set",
        "Any other setting of methods, such as inner_optimizer=adamw or lora_r=64; lists as JSON. May be given several "
        "times.",
        metavar="NAME=VALUE",
    ),
]


def settings(*without: str) -> Callable[..., dict[str, Any]]:
    """What makes settings by name of the options of `OFFERED` but some, and of --set."""
    parameters = [_setting(name) for name in OFFERED if name not in ("vote", *without)]
    parameters += [] if "vote" in without else [_parameter("vote", Vote, True)]

    def make(**values: Any) -> dict[str, Any]:
        return checked(**values)

    make.__signature__ = Signature([*parameters, _parameter("assignments", Assignments)])  # type: ignore[attr-defined]
    return make


def _parameter(name: str, kind: Any, default: Any = None) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _setting(name: str) -> Parameter:
    about = SETTINGS[name]
    inclusive = replace(about, above=None, below=None)  # what these two exclude is refused with the settings as a whole

    def parse(text: str) -> Any:
        value = _value(text)
        if not inclusive.allows(value):
            raise typer.BadParameter(f"{text!r:.100}; choose {about.cure}.")
        return value

    offered = option(
        f"--{name}",
        about.help if about.choices else f"{about.help} {about.cure.capitalize()}.",
        panel=OFFERED[name],
        default="what suits model and problem",
        metavar=about.metavar or "|".join(about.choices or ()),
        parser=parse,
    )
    return _parameter(name, Annotated[about.kind | None, offered])


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def checked(*, assignments: Sequence[str] | None = None, vote: bool = True, **values: Any) -> dict[str, Any]:
    """Settings by name, those of `assignments` (NAME=VALUE) included, without those that are None.

    Raises:
        ConfigError: If there is no such setting, or a value is out of its range.
    """
    chosen = {name: value for name, value in values.items() if value is not None}
    for word in assignments or ():
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"--set is {word!r:.100}; give NAME=VALUE, as in lora_r=64.")
        chosen[name.strip().replace("-", "_")] = _value(text)
    for name, value in chosen.items():
        if name not in SETTINGS:
            raise ConfigError(f"--set has no setting {name!r:.100}; choose some of {sorted(SETTINGS)}.")
        if not SETTINGS[name].allows(value):
            raise ConfigError(f"{name} is {shown(value, 200)}; choose {SETTINGS[name].cure}.")
    return chosen if vote else {"vote": False, **chosen}


# -- how to adapt ------------------------------------------------------------------------------------------------------


def _known(method: str | None) -> str | None:
    registry = sys.modules.get("hf_mass.methods.registry")  # where it is not loaded, nobody registered a method
    names = METHODS if registry is None else tuple(registry.METHODS)
    if method is None or method in names or ":" in method:
        return method
    raise typer.BadParameter(
        f"{method!r:.100} is none of {', '.join(names)}. Name one, or your own package.module:Class."
    )


Method = Annotated[
    str | None,
    option(
        "--method",
        "How to adapt: 'none'; 'mass', on samples that the model writes; 'ttt', on the solved examples; 'both' in "
        "turn; 'vote', not at all, but the most frequent of several answers; or package.module:Class of your own.",
        default="ttt where there are solved examples, else mass",
        callback=_known,
    ),
]


Guard = Annotated[
    bool | None,
    option(
        "--guard/--no-guard",
        "Let solved examples, left out in turn, decide how strongly to adapt, and whether at all. It needs four.",
        default="on for models that do not ship",
    ),
]


@dataclass(frozen=True, kw_only=True)
class How:
    """How `solve` and `adapt` go about a problem: the values of their options, `settings` by flat names."""

    method: Method = None
    guard: Guard = None
    seed: Seed = 0
    model: ModelChoice
    settings: dict[str, Any]
    as_json: AsJson = False
    quiet: Quiet = False


HOW = taking(model=ModelChoice, settings=settings())(How)
"""Makes it of the options' values."""
