"""The options that commands share, with their help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

MODEL, REPORT = "Model", "Output"
METHODS = ("none", "mass", "ttt", "both", "vote")
"""Those of `hf_mass.methods.registry`, which would bring torch in."""

ROWS = (
    *("none", "majority", "mass-uniform", "mass-scorer", "mass-demonstrations"),
    *("few-shot", "few-shot-voting", "ttt", "ttt-voting", "both"),
)
"""Rows of `evaluate`; a test holds them equal to those of `hf_mass.evaluation.compare`, which brings torch in."""


def option(*names: str, panel: str, default: str | bool = True, **more: Any) -> Any:
    """An option in a panel of the help."""
    return typer.Option(*names, rich_help_panel=panel, show_default=default, **more)


Model = Annotated[
    str | None,
    option(
        "--model",
        panel=MODEL,
        default="a tiny one that ships, made for such problems",
        metavar="NAME",
        help="Name of a model that ships, a folder, or a Hub id: a saved MassModel or any causal language model.",
    ),
]
Revision = Annotated[
    str | None, option("--revision", panel=MODEL, default="main", metavar="NAME", help="Branch, tag or commit.")
]
Token = Annotated[
    str | None,
    option(
        "--token",
        panel=MODEL,
        default="that of `hf auth login`, or HF_TOKEN",
        metavar="TOKEN",
        help="For a private or gated repository.",
    ),
]
Device = Annotated[
    str | None,
    option("--device", panel=MODEL, default="a GPU if there is one", metavar="NAME", help="cpu, cuda, cuda:1, mps..."),
]


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, from where and whereto; None leaves it to `hf_mass.load`."""

    name: Model = None
    revision: Revision = None
    token: Token = None
    device: Device = None


Seed = Annotated[int, option("--seed", panel="Options", metavar="N", help="For sampling and training.")]

AsJson = Annotated[bool, option("--json", panel=REPORT, help="Write JSON to stdout, and nothing else.")]
Quiet = Annotated[bool, option("--quiet", "-q", panel=REPORT, help="No progress bar and no warnings.")]
Overwrite = Annotated[bool, option("--overwrite", panel=REPORT, help="Write into a folder that holds something.")]
OutputFolder = Annotated[Path, option("--output", "-o", panel=REPORT, default=False, metavar="DIR", help="The folder.")]

Tasks = Annotated[
    str,
    typer.Argument(
        metavar="TASKS",
        show_default=False,
        help="A folder or file of grid puzzles (ARC, 1D-ARC, Kaggle), rows of input and output, JSON lines of one "
        "problem each, BIG-Bench Hard's folder, or conventions:SPLIT for the designed world that ships.",
    ),
]
Methods = Annotated[
    list[str] | None,
    option(
        "--methods",
        panel="Options",
        default="those that fit the model",
        metavar="NAME,...",
        help=f"What to compare: {', '.join(ROWS)}, or your own package.module:Class. The first five ask in the words "
        "of MASS, those from few-shot on as test-time training trains.",
    ),
]
Seeds = Annotated[
    list[str] | None,
    option("--seeds", panel="Options", default="0", metavar="N,...", help="Each method is run once with each."),
]
Limit = Annotated[
    int | None,
    option("--limit", panel="Options", default="all; 50 of conventions", metavar="N", min=1, help="Tasks at most."),
]
Demonstrations = Annotated[
    int,
    option("--demonstrations", panel="Options", metavar="N", min=1, help="Rows of a file that are shown as solved."),
]
Verifier = Annotated[
    str, option("--verifier", panel="Options", metavar="NAME", help="Judges texts, unless a task names its own.")
]
BatchSize = Annotated[int, option("--batch_size", panel="Options", metavar="N", min=1, help="Tasks side by side.")]
TokenBudget = Annotated[
    int | None,
    option(
        "--token_budget",
        panel="Options",
        default="what the costliest row of MASS sampled",
        metavar="N",
        min=1,
        help="Sampled tokens a task that the majority vote may spend.",
    ),
]
ReportFolder = Annotated[
    Path | None,
    option(
        "--output",
        "-o",
        panel=REPORT,
        default=False,
        metavar="DIR",
        help="Gets results.json, results.md, results.png and outcomes.json, every single outcome.",
    ),
]
Resume = Annotated[
    bool, option("--resume", panel=REPORT, help="Go on with the run in DIR, which has the same settings.")
]
