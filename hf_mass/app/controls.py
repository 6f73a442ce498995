"""The settings that visitors may change, how far, and the page's controls for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import gradio as gr

from hf_mass.errors import ConfigError, DataError
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.guard import Guard, guarded
from hf_mass.methods.mass import MASS
from hf_mass.methods.mass_settings import MassConfig
from hf_mass.methods.settings import Option, flat, values_of
from hf_mass.methods.ttt import TTT
from hf_mass.methods.ttt_settings import TTTSettings
from hf_mass.tasks.checks import shown
from hf_mass.tasks.tables import TableForm
from hf_mass.tasks.task import Task

AUTOMATIC = "automatic"
"""What stands for the model's own setting, and for the model that suits the problem."""
OFFERED = {
    **dict.fromkeys(("samples", "inner_steps", "inner_learning_rate", "weigh_by"), "MASS"),
    **dict.fromkeys(("max_examples", "num_train_epochs", "learning_rate"), "TTT"),
}
"""Settings that visitors may change → what they belong to."""
MOST = {"samples": 32, "inner_steps": 8, "max_examples": 100, "num_train_epochs": 8}
"""The most that one visitor may ask for."""

LABELS = {name: f"{method}: {name.replace('_', ' ')}" for name, method in OFFERED.items()}
LABELS |= {"vote": "TTT: vote", "guard": "Guard", "seed": "Seed"}
_ALL = flat(MassConfig) | flat(TTTSettings)
OPTIONS: dict[str, Option] = {name: replace(_ALL[name], most=MOST.get(name, _ALL[name].most)) for name in OFFERED}
OPTIONS |= {
    "vote": Option("vote", bool, True, "Answer under several transformations and vote; otherwise ask once."),
    "guard": Option(
        "guard",
        bool,
        False,
        "Let solved examples that are left out in turn decide how strongly to adapt, and whether at all; needs four.",
    ),
    "seed": Option("seed", int, 0, "For sampling and training."),
}
"""Name → what it does and which values it may have here, in the order of the controls."""
HEADER = "The first row names the columns"
FORM = {
    "input_column": ("Column of inputs", "input, question, ..."),
    "output_column": ("Column of outputs", "output, answer, ..."),
    "encoding": ("Encoding, as in cp1252", "what the bytes look like"),
    "delimiter": ("Between cells: ; or tab...", "what the first rows look like"),
}
"""Names of `TableForm`, whose `header` comes last → what the page calls them, and what stands for an empty one."""

TEXT_FORM = tuple(name for name in FORM if name != "encoding")
"""Names of `FORM` that a pasted text may need."""


def form_controls(names: Sequence[str] = tuple(FORM), mark: str = "form") -> list[Any]:
    """The controls of what rows do not say themselves, in the order that `table_form` takes their values in.

    Args:
        names: Some of `FORM`.
        mark: What their ids begin with.
    """
    texts = [
        gr.Textbox(label=FORM[name][0], placeholder=FORM[name][1], max_lines=1, elem_id=f"{mark}-{name}")
        for name in names
    ]
    return [*texts, gr.Checkbox(True, label=HEADER, elem_id=f"{mark}-header")]


def table_form(values: Sequence[Any], names: Sequence[str] = tuple(FORM)) -> TableForm:
    """The form of the controls' values; those that are empty, or missing, are left to the rows.

    Args:
        values: Of the controls that `form_controls` makes.
        names: Those that they were made for.

    Raises:
        ConfigError: If the delimiter is no single character.
    """
    given = dict(zip([*names, "header"], values, strict=False))
    return TableForm(**{name: value for name, value in given.items() if value not in (None, "")})


def on_page(error: str) -> str:
    """An error with what the page calls its controls, in place of arguments and options of the command line."""
    labels = {name: f"“{re.split('[,:]', label)[0]}”" for name, (label, _) in FORM.items()}
    labels["no_header"] = f"“{HEADER}”"
    text = re.sub(r"(, or|;) take all( of them)? (by --each|\(--each\))", "", error)
    text = re.sub(r"\(\w+=[^,()]*, (--\w+[^()]*)\)", r"(\1)", text)
    text = text.replace("Set input_column and output_column", "Set --input_column and --output_column")
    text = re.sub(r"^(encoding|delimiter) is", r"--\1 is", text)
    return re.sub(r"--(\w+)", lambda found: labels.get(found[1], found[0]), text)


def control(name: str, value: Any = None) -> Any:
    """The control of a setting, at a value or its default."""
    option = OPTIONS[name]
    value = option.default if value is None else value
    texts: dict[str, Any] = {"label": LABELS[name], "info": option.help, "elem_id": f"setting-{name}"}
    if option.kind is bool:
        return gr.Checkbox(value, **texts)
    if option.choices is not None:
        return gr.Dropdown([AUTOMATIC, *option.choices], value=AUTOMATIC, **texts)
    if option.kind is float:
        # Without bounds that follow the model: Gradio would refuse the value of a page that has not got its own yet.
        return gr.Number(value, **texts)
    if option.least is None or option.most is None:
        return gr.Number(value, **texts)  # not rounded: what is no whole number is refused
    return gr.Slider(option.least, option.most, min(value, option.most), step=1, **texts)


def model_values(lm: LanguageModel, tasks: Sequence[Task]) -> dict[str, Any]:
    """The model's own values for tasks, by name of the setting; without those of TTT if it cannot be trained so."""
    values = values_of(MASS().settings(lm, tasks)) | {"guard": isinstance(guarded(TTT(), lm, tasks), Guard)}
    with suppress(DataError):
        values |= values_of(TTT().resolved(lm, tasks))
    return {name: values[name] for name in OPTIONS if isinstance(values.get(name), int | float)}


def chosen_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of controls, without those that stand for the model's own: None, 0, the empty text, AUTOMATIC.

    Raises:
        ConfigError: If there is no such setting, or a value is out of range or beyond what visitors may ask for.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"settings is {shown(values)}; give an object of names and values.")
    if unknown := sorted(set(values) - set(OPTIONS)):
        raise ConfigError(f"There is no setting {unknown[0]!r:.60} here; choose some of {list(OPTIONS)}.")
    settings = {k: value for k, value in values.items() if value is False or value not in (None, 0, "", AUTOMATIC)}
    for name, value in settings.items():
        if not OPTIONS[name].allows(value):
            raise ConfigError(f"{name} is {shown(value)}; choose {OPTIONS[name].cure}.")
    return settings
