"""The options that commands share, with their help."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from hf_mass.tasks.tables import TableForm

MODEL, REPORT, FILES = "Model", "Output", "Files of rows"
METHODS = ("none", "mass", "ttt", "both", "vote")
"""Those of `hf_mass.methods.registry`, which would bring torch in."""
DTYPES = ("float32", "bfloat16", "float16", "auto")
"""Those of `hf_mass.lm.precision`, which would bring torch in."""
KWARGS_EXAMPLE = '{"enable_thinking": false}'
LOGGED_IN = "that of `hf auth login`, or HF_TOKEN"

ROWS = (
    *("none", "majority", "mass-uniform", "mass-scorer", "mass-demonstrations", "mass-matching"),
    *("few-shot", "few-shot-voting", "ttt", "ttt-voting", "both"),
)
"""Rows of `evaluate`; a test holds them equal to those of `hf_mass.evaluation.compare`, which brings torch in."""


def option(name: str, help: str, *, panel: str = "Options", default: str | bool = True, **more: Any) -> Any:
    """An option, in a panel of the help; a `default` in words stands for None. A short name is behind the long one."""
    return typer.Option(*name.split(), rich_help_panel=panel, show_default=default, help=help, **more)


def argument(metavar: str, help: str) -> Any:
    """A positional argument that has no default."""
    return typer.Argument(metavar=metavar, show_default=False, help=help)


def _template_kwargs(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{text!r:.100} is no JSON: {error}. Give an object, as {KWARGS_EXAMPLE}.") from error
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{text!r:.100} is no JSON object. Give one, as {KWARGS_EXAMPLE}.")
    return value


def _dtype(name: str | None) -> str | None:
    if name is None or name in DTYPES:
        return name
    raise typer.BadParameter(f"{name!r:.100} is none of {', '.join(DTYPES)}.")


def _model(name: str | None) -> str | None:
    if name is None or name.strip():
        return name
    raise typer.BadParameter("it is empty. Name a model, or leave the option out.")


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, from where and whereto, and how it is asked; None leaves it to `hf_mass.load`."""

    name: Annotated[
        str | None,
        option(
            "--model",
            "Name of a model that ships, a folder, a GGUF file, or a Hub id: a saved MassModel, a LoRA or any causal "
            "language model.",
            panel=MODEL,
            default="a tiny one that ships, made for such problems",
            callback=_model,
        ),
    ] = None
    revision: Annotated[str | None, option("--revision", "Branch, tag or commit.", panel=MODEL, default="main")] = None
    token: Annotated[
        str | None, option("--token", "For a private or gated repository.", panel=MODEL, default=LOGGED_IN)
    ] = None
    device: Annotated[
        str | None, option("--device", "cpu, cuda, cuda:1, mps...", panel=MODEL, default="a GPU if there is one")
    ] = None
    dtype: Annotated[
        str | None,
        option(
            "--dtype",
            "Precision of the weights; 'auto' is the one that they are saved in.",
            panel=MODEL,
            default="bfloat16 where the device is faster at it, else auto",
            metavar="|".join(DTYPES),
            callback=_dtype,
        ),
    ] = None
    chat: Annotated[
        bool | None,
        option(
            "--chat/--no_chat",
            "Whether prompts go through the chat template.",
            panel=MODEL,
            default="not for solved examples, else where there is one",
        ),
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None,
        option(
            "--chat_template_kwargs",
            f"Arguments of the chat template, as JSON: {KWARGS_EXAMPLE}.",
            panel=MODEL,
            default="none",
            metavar="JSON",
            parser=_template_kwargs,
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """What was chosen besides the name, as arguments of `hf_mass.load`."""
        return {name: value for name, value in vars(self).items() if name != "name" and value is not None}


def table_form(
    input_column: Annotated[
        str | None, option("--input_column", "The column of inputs.", panel=FILES, default="input, question, ...")
    ] = None,
    output_column: Annotated[
        str | None, option("--output_column", "The column of outputs.", panel=FILES, default="output, answer, ...")
    ] = None,
    encoding: Annotated[
        str | None, option("--encoding", "As in cp1252.", panel=FILES, default="what the bytes look like")
    ] = None,
    delimiter: Annotated[
        str | None,
        option("--delimiter", "Between cells: ';' or tab...", panel=FILES, default="what the first rows look like"),
    ] = None,
    header: Annotated[
        bool, option("--header/--no_header", "Whether the first row of a table names its columns.", panel=FILES)
    ] = True,
) -> TableForm:
    """What a file of rows does not say itself."""
    return TableForm(
        input_column=input_column, output_column=output_column, encoding=encoding, delimiter=delimiter, header=header
    )


Seed = Annotated[int, option("--seed", "For sampling and training.")]
AsJson = Annotated[bool, option("--json", "Write JSON to stdout, and nothing else.", panel=REPORT)]


def _quiet(quiet: bool) -> bool:
    """Silences warnings at once: reading a file may warn before there is a progress bar to be left out."""
    if quiet and not sys.warnoptions:
        warnings.simplefilter("ignore")
    return quiet


Quiet = Annotated[bool, option("--quiet -q", "No progress bar and no warnings.", panel=REPORT, callback=_quiet)]
