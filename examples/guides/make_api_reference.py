"""Write the API reference, `examples/guides/api.md`, from signatures and docstrings.

In the folder `examples`:

python -m guides.make_api_reference            # writes it
python -m guides.make_api_reference --check    # says whether it is up to date
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hf_mass import errors
from hf_mass.methods.settings import Option, options_of
from hf_mass.store.markdown import markdown_table

PLACE = Path(__file__).resolve().parent / "api.md"

SECTIONS: dict[str, tuple[str, ...]] = {
    "Adapting": (
        *("hf_mass.load", "hf_mass.adapt", "hf_mass.solve", "hf_mass.Adaptation", "hf_mass.Answer"),
        *("hf_mass.methods.base.Cost", "hf_mass.engine.solution.Solution", "hf_mass.LanguageModel"),
        "hf_mass.tasks.problems.Problem",
    ),
    "Methods": (
        *(
            "hf_mass.TTT",
            "hf_mass.TTTSettings",
            "hf_mass.MASS",
            "hf_mass.TTTThenMASS",
            "hf_mass.MajorityVote",
            "hf_mass.Guard",
            "hf_mass.methods.base.GuardEntry",
        ),
        *("hf_mass.NoAdaptation", "hf_mass.Method", "hf_mass.methods.base.Progress", "hf_mass.register_method"),
        *("hf_mass.methods.registry.make_method", "hf_mass.methods.few_shot_answers.FewShotAnswers"),
    ),
    "Watching and stopping": (
        *("hf_mass.engine.session.Session", "hf_mass.engine.session.events", "hf_mass.engine.events.Stage"),
        *("hf_mass.engine.events.Generating", "hf_mass.engine.events.Writing", "hf_mass.engine.events.Weighed"),
        *("hf_mass.engine.events.InnerStep", "hf_mass.engine.events.Trial", "hf_mass.engine.events.Measured"),
        *("hf_mass.engine.events.Loss", "hf_mass.engine.events.Replies"),
    ),
    "Tasks and data": (
        *("hf_mass.Task", "hf_mass.Demonstration", "hf_mass.load_tasks", "hf_mass.Columns"),
        *("hf_mass.load_few_shot_file", "hf_mass.load_grid_tasks", "hf_mass.load_bbh", "hf_mass.PromptFormat"),
        *("hf_mass.FORMATS", "hf_mass.FewShotFormat", "hf_mass.register_verifier"),
        *("hf_mass.tasks.verifiers.get_verifier", "hf_mass.tasks.voting.Prediction"),
    ),
    "MASS": (
        *("hf_mass.MassModel", "hf_mass.MassConfig", "hf_mass.methods.mass_settings.InnerConfig"),
        *("hf_mass.methods.mass_settings.ScorerConfig", "hf_mass.methods.mass_settings.AttributionConfig"),
        *("hf_mass.methods.samples.AuxiliarySample", "hf_mass.MetaAdaptTrainer", "hf_mass.MetaAdaptConfig"),
        "hf_mass.store.hub_files.push_folder",
    ),
    "Test-time training of many tasks": (
        *("hf_mass.TTTTrainer", "hf_mass.TTTConfig", "hf_mass.training.ttt_results.TaskResult"),
        "hf_mass.tasks.answers.TaskScore",
    ),
    "Errors": tuple(f"hf_mass.errors.{name}" for name, each in vars(errors).items() if inspect.isclass(each)),
}
"""Heading → full names, in the order of the page."""

HOOKS = {
    "attribution",
    "compute_loss",
    "create_optimizer",
    "create_model_card",
    "init_hf_repo",
    "save_published",
    "published_card",
}
"""Methods that TRL calls, not a reader."""


@dataclass(frozen=True)
class Doc:
    """A Google-style docstring: the text before its sections, and "Args" and "Raises" as name → text."""

    text: str
    args: dict[str, str] = field(default_factory=dict)
    returns: str = ""
    raises: dict[str, str] = field(default_factory=dict)


def read_doc(thing: Any) -> Doc:
    """The docstring of an object, taken apart."""
    text = inspect.cleandoc(thing.__doc__ or "")
    parts = re.split(r"^(Args|Returns|Raises):\n", text, flags=re.MULTILINE)
    sections = {name: inspect.cleandoc("\n" + body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}
    return Doc(
        parts[0].strip(),
        _entries(sections.get("Args", "")),
        " ".join(sections.get("Returns", "").split()),
        _entries(sections.get("Raises", "")),
    )


def _entries(text: str) -> dict[str, str]:
    """`name: text` entries; lines that are indented further continue one."""
    parts = re.split(r"^\**(\w+):\s", text, flags=re.MULTILINE)
    return {name: " ".join(body.split()) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


@dataclass(frozen=True)
class Argument:
    """One argument: its name, its type as written, its default as it is shown ("" if there is none).

    `stars` stand before its name in a signature, `help` is the text that a setting carries itself.
    """

    name: str
    kind: str
    default: str
    stars: str = ""
    help: str = ""

    def __str__(self) -> str:
        return f"{self.stars}{self.name}" + (f"={self.default}" if self.default else "")

    @property
    def typed(self) -> str:
        """As in a signature, with its type."""
        kind = f": {self.kind}" if self.kind else ""
        return f"{self.stars}{self.name}{kind}" + (f" = {self.default}" if self.default else "")


def arguments(thing: Any) -> list[Argument]:
    """The arguments of a function, a method, or the constructor of a class; none of a protocol.

    Of a class that only adds settings to TRL's, those that it adds or changes.
    """
    if getattr(thing, "_is_protocol", False):
        return []
    if isinstance(thing, type) and "__dataclass_params__" in vars(thing):
        own = inspect.get_annotations(thing)
        listed = [f for f in fields(thing) if f.name in own and f.init and not f.name.startswith("_")]
        offered = {**options_of(thing), **getattr(thing, "__settings__", {})}
        return [
            Argument(
                f.name,
                _kind(own[f.name]),
                _default(_of_field(f)),
                help=_help(f, offered.get(f.name)),
            )
            for f in listed
        ]
    parameters = inspect.signature(thing).parameters.values()
    keyword_only = next((p.name for p in parameters if p.kind is p.KEYWORD_ONLY), None)
    return [
        Argument(p.name, _kind(p.annotation), _default(p.default), "*, " if p.name == keyword_only else _stars(p))
        for p in parameters
        if p.name not in ("self", "cls") and not p.name.startswith("_")
    ]


def _help(item: Field[Any], option: Option | None) -> str:
    """What a setting does, the values that it can have, and the name by which others offer it."""
    text = str(item.metadata.get("help", ""))
    if option is None:
        return text
    bounds = (option.least, option.most, option.above, option.below)
    if any(bound is not None for bound in bounds) or not all(f"'{each}'" in text for each in option.choices or ()):
        text += f" {option.cure[0].upper()}{option.cure[1:]}."
    names = "`, `".join(part.name for part in option.parts())
    return text if option.name == item.name else f"{text} Elsewhere: `{names}`."


def _stars(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_KEYWORD:
        return "**"
    return "*" if parameter.kind is parameter.VAR_POSITIONAL else ""


def _of_field(item: Any) -> Any:
    if inspect.isbuiltin(item.default_factory):  # a clock, say: another value each time
        return MISSING
    if item.default_factory is not MISSING:
        return item.default_factory()
    return item.default


def _kind(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    if isinstance(annotation, type):
        return annotation.__name__
    return str(annotation)


def _default(value: Any) -> str:
    if value is MISSING or value is inspect.Parameter.empty or inspect.isfunction(value):
        return ""
    shown = repr(getattr(value, "value", value))
    if is_dataclass(value):
        return f"{type(value).__name__}(...)"
    return shown if len(shown) <= 40 else f"{shown[:36]} ..."


# -- rendering ---------------------------------------------------------------------------------------------------------


def _table(listed: list[Argument], texts: dict[str, str]) -> Iterator[str]:
    rows = [
        (f"`{each.name}`", _code(each.kind), _code(each.default), texts.get(each.name) or each.help) for each in listed
    ]
    yield markdown_table(("argument", "type", "default", ""), rows, text_columns=4)
    yield ""


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _described(name: str, thing: Any) -> Iterator[str]:
    """Signature, text, arguments, errors. Types stand in the table where there is one, else in the signature."""
    doc, listed = read_doc(thing), arguments(thing)
    tabled = bool(doc.args) or any(each.help for each in listed)
    returned = "" if isinstance(thing, type) else _kind(inspect.signature(thing).return_annotation)
    arrow = f" -> {returned}" if returned and returned != "None" else ""
    shown = ["..."] if len(listed) > 8 else [str(each) if tabled else each.typed for each in listed]
    signature = f"{name}({', '.join(shown)}){arrow}"
    if len(signature) > 100:
        signature = "\n    ".join([f"{name}(", *(f"{each}," for each in shown)]) + f"\n){arrow}"
    yield from ("```text", signature, "```", "", doc.text, "")
    if tabled:
        yield from _table(listed, doc.args)
    if doc.returns:
        yield from (f"Returns: {doc.returns}", "")
    if doc.raises:
        yield from (*(f"- raises `{name}`: {text}" for name, text in doc.raises.items()), "")


def methods(kind: type) -> dict[str, Callable[..., Any] | property]:
    """A class's public methods and properties that this package defines: its own, then those of its bases."""
    members: dict[str, Any] = {}
    hidden = HOOKS | set(getattr(kind, "__dataclass_fields__", ()))  # a field may have a function as its default
    for owner in (base for base in kind.__mro__ if base.__module__.startswith("hf_mass")):
        for name, thing in vars(owner).items():
            plain = thing.__func__ if isinstance(thing, classmethod | staticmethod) else thing
            if not name.startswith("_") and name not in hidden and (inspect.isfunction(plain) or _is_property(plain)):
                members.setdefault(name, plain)
    # An override without words of its own does what the base says.
    inherited = {name for base in kind.__mro__[1:] for name in vars(base)}
    return {name: each for name, each in members.items() if each.__doc__ or name not in inherited}


def _is_property(thing: Any) -> bool:
    return isinstance(thing, property)


def render(full: str) -> Iterator[str]:
    """The lines of one object."""
    module, _, name = full.rpartition(".")
    thing = getattr(import_module(module), name)
    yield from (f"### {name}", "", f"`from {module} import {name}`", "")
    if isinstance(thing, dict):
        yield from (f"A dict of name → `{type(next(iter(thing.values()))).__name__}`: " + _names(thing) + ".", "")
        return
    if isinstance(thing, type) and issubclass(thing, Exception):
        bases = ", ".join(f"`{base.__name__}`" for base in thing.__bases__)
        yield from (read_doc(thing).text, "", f"Derives from {bases}.", "")
        return
    yield from _described(name, thing)
    for method, plain in (methods(thing) if isinstance(thing, type) else {}).items():
        if re.fullmatch(r"See `[\w.]+`\.", read_doc(plain).text):  # says no more than what it implements
            continue
        yield from (f"#### {name}.{method}", "")
        if isinstance(plain, property):
            yield from (f"A property. {read_doc(plain).text}", "")
        else:
            yield from _described(method, plain)


def _names(thing: dict[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in thing)


def reference() -> str:
    """The whole page."""
    lines = [
        "# API reference",
        "",
        "Made from the docstrings by `python -m guides.make_api_reference` in `examples`; not to be edited by hand.",
        "How the parts are used: [adapt your model](adapt-your-model.md), [test-time training](ttt-few-shot.md),",
        "[train MASS](train-mass.md), [a method](write-a-method.md), [a verifier](write-a-verifier.md),",
        "[a task set](write-a-task-set.md), [the attributions](read-the-attributions.md).",
        "",
        "Trainers and their configs are TRL's with more: what they inherit from `GRPOTrainer` and `GRPOConfig` is left",
        "out. So is what a method does as `Method` says, and no more. Trainers, the command line, `TTT(...)` and",
        "`MASS(...)` take all settings by flat names; where such a name differs, 'elsewhere' tells it.",
        "",
    ]
    for heading, names in SECTIONS.items():
        listed = ", ".join(f"[{name.rpartition('.')[2]}](#{name.rpartition('.')[2].lower()})" for name in names)
        lines += [f"- {heading}: {listed}"]
    lines.append("")
    for heading, names in SECTIONS.items():
        lines += [f"## {heading}", "", *(line for name in names for line in render(name))]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    page = reference()
    if not parser.parse_args().check:
        PLACE.write_text(page, encoding="utf-8")
    elif PLACE.read_text(encoding="utf-8") != page:
        sys.exit(f"{PLACE} is out of date: run python -m guides.make_api_reference in examples")


if __name__ == "__main__":
    main()
