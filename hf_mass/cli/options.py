"""The options that commands share, with their help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

MODEL, REPORT = "Model", "Output"
METHODS = ("none", "mass", "ttt", "both", "vote")
"""Those of `hf_mass.methods.registry`, which would bring torch in."""
LOGGED_IN = "that of `hf auth login`, or HF_TOKEN"

ROWS = (
    *("none", "majority", "mass-uniform", "mass-scorer", "mass-demonstrations"),
    *("few-shot", "few-shot-voting", "ttt", "ttt-voting", "both"),
)
"""Rows of `evaluate`; a test holds them equal to those of `hf_mass.evaluation.compare`, which brings torch in."""


def option(name: str, help: str, *, panel: str = "Options", default: str | bool = True, **more: Any) -> Any:
    """An option, in a panel of the help; a `default` in words stands for None. A short name is behind the long one."""
    return typer.Option(*name.split(), rich_help_panel=panel, show_default=default, help=help, **more)


def argument(metavar: str, help: str) -> Any:
    """A positional argument that has no default."""
    return typer.Argument(metavar=metavar, show_default=False, help=help)


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, from where and whereto; None leaves it to `hf_mass.load`."""

    name: Annotated[
        str | None,
        option(
            "--model",
            "Name of a model that ships, a folder, or a Hub id: a saved MassModel or any causal language model.",
            panel=MODEL,
            default="a tiny one that ships, made for such problems",
        ),
    ] = None
    revision: Annotated[str | None, option("--revision", "Branch, tag or commit.", panel=MODEL, default="main")] = None
    token: Annotated[
        str | None, option("--token", "For a private or gated repository.", panel=MODEL, default=LOGGED_IN)
    ] = None
    device: Annotated[
        str | None, option("--device", "cpu, cuda, cuda:1, mps...", panel=MODEL, default="a GPU if there is one")
    ] = None


Seed = Annotated[int, option("--seed", "For sampling and training.")]
AsJson = Annotated[bool, option("--json", "Write JSON to stdout, and nothing else.", panel=REPORT)]
Quiet = Annotated[bool, option("--quiet -q", "No progress bar and no warnings.", panel=REPORT)]
