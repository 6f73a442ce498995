"""The options that commands share, with their help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

MODEL, MASS, TTT, REPORT = "Model", "MASS", "Test-time training", "Output"
_MODELS_OWN = "the model's own"

MethodName = Literal["none", "mass", "ttt", "both"]
WeighingName = Literal["demonstrations", "scorer", "uniform"]

ROWS = (
    *("none", "majority", "mass-uniform", "mass-scorer", "mass-demonstrations"),
    *("few-shot", "few-shot-voting", "ttt", "ttt-voting", "both"),
)
"""Rows of `evaluate`; a test holds them equal to those of `hf_mass.evaluation.compare`, which brings torch in."""


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, from where and whereto; None leaves it to `load_model`."""

    name: str | None = None
    revision: str | None = None
    token: str | None = None
    device: str | None = None


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

Samples = Annotated[
    int | None,
    option("--samples", panel=MASS, default=_MODELS_OWN, metavar="M", min=1, help="Samples that the model writes."),
]
InnerSteps = Annotated[
    int | None,
    option("--inner_steps", panel=MASS, default=_MODELS_OWN, metavar="K", min=1, help="Steps of training on them."),
]
InnerLearningRate = Annotated[
    float | None,
    option("--inner_learning_rate", panel=MASS, default=_MODELS_OWN, metavar="RATE", help="Rate of these steps."),
]
WeighBy = Annotated[
    WeighingName | None,
    option(
        "--weigh_by",
        panel=MASS,
        default="demonstrations where there are some",
        help="What weighs the samples: their attribution to the solved examples, a trained scorer, or nothing.",
    ),
]
MaxExamples = Annotated[
    int | None,
    option("--max_examples", panel=TTT, default=_MODELS_OWN, metavar="N", min=1, help="Training examples at most."),
]
NumTrainEpochs = Annotated[
    int | None,
    option("--num_train_epochs", panel=TTT, default=_MODELS_OWN, metavar="N", min=1, help="Passes over them."),
]
LearningRate = Annotated[
    float | None,
    option("--learning_rate", panel=TTT, default=_MODELS_OWN, metavar="RATE", help="Highest learning rate."),
]
Vote = Annotated[
    bool,
    option(
        "--vote/--no_vote", panel=TTT, help="Answer under several transformations of the problem and vote, or ask once."
    ),
]
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
