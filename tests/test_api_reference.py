"""The API reference is what the docstrings say now, and these say what every argument is."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest

import hf_mass
from guides import make_api_reference as api
from hf_mass import errors
from hf_mass.methods.settings import declares, setting

NAMES = [name for listed in api.SECTIONS.values() for name in listed]


def thing(name: str) -> Any:
    module, _, own = name.rpartition(".")
    return getattr(import_module(module), own)


DESCRIBED = [
    name for name in NAMES if not isinstance(thing(name), dict) and name.rpartition(".")[0] != "hf_mass.errors"
]


def test_the_page_is_up_to_date() -> None:
    shown = api.PLACE.read_text(encoding="utf-8")
    assert shown == api.reference(), "run python -m guides.make_api_reference"


def test_every_public_name_and_error_is_there() -> None:
    public = {f"hf_mass.{name}" for name in hf_mass.__all__ if name != "__version__"}
    raised = {f"hf_mass.errors.{name}" for name, each in vars(errors).items() if inspect.isclass(each)}
    assert public | raised <= set(NAMES)
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("name", DESCRIBED)
def test_arguments_are_those_of_the_signature(name: str) -> None:
    found, doc = api.arguments(thing(name)), api.read_doc(thing(name))
    assert doc.text
    assert list(doc.args) == [each.name for each in found if each.name in doc.args], "in the order of the signature"
    for each in found:
        assert doc.args.get(each.name) or each.help or f"`{each.name}`" in doc.text, each.name


@pytest.mark.parametrize("name", [name for name in DESCRIBED if inspect.isclass(thing(name))])
def test_arguments_of_methods_are_those_of_their_signatures(name: str) -> None:
    """A method may do without a list of arguments; one that has it names them all."""
    for method, plain in api.methods(thing(name)).items():
        doc = api.read_doc(plain)
        assert doc.text, method
        if doc.args:
            assert list(doc.args) == [each.name for each in api.arguments(plain)], method


def test_what_is_said_to_be_raised_can_be_raised() -> None:
    known = {name for name, each in vars(errors).items() if inspect.isclass(each)} | set(dir(__builtins__))
    raised = re.findall(r"^- raises `(\w+)`", api.PLACE.read_text(encoding="utf-8"), re.MULTILINE)
    assert raised and set(raised) <= known | {"ValueError"}


def test_links_lead_to_headings() -> None:
    page = api.PLACE.read_text(encoding="utf-8")
    headings = {heading.lower().replace(".", "") for heading in re.findall(r"^#+ (\S+)$", page, re.MULTILINE)}
    targets = re.findall(r"\]\(#([^)]+)\)", page)
    assert targets and set(targets) <= headings


class Example:
    """What it is.

    More of it.

    Args:
        one: First
            and more.
        two: Second, with a: colon.

    Returns:
        A thing.

    Raises:
        ValueError: If not.
    """

    def __init__(self, one: int, *, two: str = "x|y", **rest: Any) -> None: ...

    def method(self, one: list[int]) -> int:
        """Do it."""
        return one[0]


def test_a_docstring_is_taken_apart() -> None:
    doc = api.read_doc(Example)
    assert doc.text == "What it is.\n\nMore of it."
    assert doc.args == {"one": "First and more.", "two": "Second, with a: colon."}
    assert (doc.returns, doc.raises) == ("A thing.", {"ValueError": "If not."})


def test_an_object_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    page = "\n".join(api.render(f"{__name__}.Example"))
    assert "Example(one, *, two='x|y', **rest)" in page
    assert "| `two` | `str` | `'x\\|y'` | Second, with a: colon. |" in page
    assert "- raises `ValueError`: If not." in page
    monkeypatch.setattr(Example, "__module__", "hf_mass.made_up")
    assert "method(one: list[int]) -> int" in "\n".join(api.render(f"{__name__}.Example"))


@dataclass(frozen=True)
class Settings:
    """What is set."""

    rate: float = setting(0.1, "How fast.", name="inner_rate", above=0)
    kind: str = setting("a", "Which.", choices=("a", "b"))


@dataclass
@declares(Settings)
class Config:
    """What is set, flat."""


def test_settings_are_rendered_where_they_stand_and_where_they_are_declared() -> None:
    for name, row in (
        ("Settings", "| `rate` | `float` | `0.1` | How fast. A finite number above 0. Elsewhere: `inner_rate`. |"),
        ("Config", "| `inner_rate` | `float` | `0.1` | How fast. A finite number above 0. |"),
    ):
        page = "\n".join(api.render(f"{__name__}.{name}"))
        assert row in page and "Which. One of ['a', 'b']." in page


def test_what_only_implements_is_left_out() -> None:
    page = "\n".join(api.render("hf_mass.MASS"))
    assert "MASS.step" in page and "MASS.stop" not in page
