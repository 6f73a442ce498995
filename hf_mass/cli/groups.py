"""Several options that a command takes as one argument: which model, and settings, made from their own declarations."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from inspect import Parameter, signature
from typing import Annotated, Any, get_type_hints

import typer

from hf_mass.cli.options import ModelChoice, option
from hf_mass.errors import ConfigError
from hf_mass.methods.mass_settings import MassConfig
from hf_mass.methods.settings import Option, flat
from hf_mass.methods.ttt_settings import TTTSettings
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


@dataclass(frozen=True)
class Group:
    """Options that a command takes as one argument.

    Args:
        parameters: The options, as typer reads them.
        make: Makes the argument from their values by name.
    """

    parameters: Sequence[Parameter]
    make: Callable[..., Any]


def taking(**groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: typer sees the options of a group in place of the command's argument of that name."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        written = signature(command, eval_str=True)

        @wraps(command)
        def call(**values: Any) -> None:
            for name, group in groups.items():
                values[name] = group.make(**{each.name: values.pop(each.name) for each in group.parameters})
            command(**values)

        several = [
            groups[each.name].parameters if each.name in groups else [each] for each in written.parameters.values()
        ]
        typed: Any = call
        typed.__signature__ = written.replace(parameters=[each for some in several for each in some])
        return call

    return decorate


def _parameter(name: str, kind: Any, default: Any = None) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


MODEL_CHOICE = Group(
    [_parameter(name, kind) for name, kind in get_type_hints(ModelChoice, include_extras=True).items()], ModelChoice
)


Vote = Annotated[
    bool,
    option(
        "--vote/--no_vote", panel=TTT, help="Answer under several transformations of the problem and vote, or ask once."
    ),
]
Assignments = Annotated[
    list[str] | None,
    option(
        "--set",
        panel="Options",
        default=False,
        metavar="NAME=VALUE",
        help="Any other setting of methods, such as inner_optimizer=adamw or lora_r=64; lists as JSON. May be "
        "given several times.",
    ),
]


def settings(*without: str) -> Group:
    """The options of `OFFERED` but some, and --set; the command gets what was set, by name."""
    parameters = [_setting(name) for name in OFFERED if name not in ("vote", *without)]
    parameters += [] if "vote" in without else [_parameter("vote", Vote, True)]
    return Group([*parameters, _parameter("assignments", Assignments)], checked)


def _setting(name: str) -> Parameter:
    about = SETTINGS[name]
    inclusive = replace(about, above=None, below=None)  # what these two exclude is refused with the settings as a whole

    def parse(text: str) -> Any:
        value = _value(text)
        if not inclusive.allows(value):
            raise typer.BadParameter(f"{text!r}; choose {about.cure}.")
        return value

    offered = option(
        f"--{name}",
        panel=OFFERED[name],
        default="what suits model and problem",
        metavar=about.metavar or "|".join(about.choices or ()),
        parser=parse,
        help=about.help if about.choices else f"{about.help} {about.cure.capitalize()}.",
    )
    return _parameter(name, Annotated[about.kind | None, offered])


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def checked(*, assignments: Sequence[str] | None = None, vote: bool = True, **values: Any) -> dict[str, Any]:
    """Settings by name, without those that are None.

    Args:
        assignments: Further ones as NAME=VALUE.
        vote: False asks once.
        values: Name → value.

    Raises:
        ConfigError: If there is no such setting, or a value is out of its range.
    """
    chosen = {name: value for name, value in values.items() if value is not None}
    for word in assignments or ():
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"--set is {word!r}; give NAME=VALUE, as in lora_r=64.")
        chosen[name.strip().replace("-", "_")] = _value(text)
    for name, value in chosen.items():
        if name not in SETTINGS:
            raise ConfigError(f"--set has no setting {name!r}; choose some of {sorted(SETTINGS)}.")
        if not SETTINGS[name].allows(value):
            raise ConfigError(f"{name} is {value!r:.200}; choose {SETTINGS[name].cure}.")
    return chosen if vote else {"vote": False, **chosen}
