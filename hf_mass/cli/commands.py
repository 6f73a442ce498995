"""The commands: their arguments, options and help. What needs a model is imported once the problem is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_mass.cli.deferred import deferred
from hf_mass.cli.groups import HOW, Guard, How, settings, taking
from hf_mass.cli.options import LOGGED_IN, REPORT, ROWS, AsJson, ModelChoice, Quiet, argument, option, table_form
from hf_mass.cli.reading import read_problems
from hf_mass.errors import CheckpointError
from hf_mass.tasks.tables import TableForm

_solve = deferred("hf_mass.cli.solving", "solve_problems")
_adapt = deferred("hf_mass.cli.solving", "adapt_and_save")
_evaluate = deferred("hf_mass.cli.evaluating", "evaluate_methods")
_push = deferred("hf_mass.cli.sharing", "push")
_card = deferred("hf_mass.cli.sharing", "card")
_launch = deferred("hf_mass.app.app", "launch")

Problem = Annotated[
    list[str],
    argument(
        "FILE_OR_TEXT...",
        "A file, '-' for stdin, or its lines, a word each: 'input -> output', and a last input alone.",
    ),
]
Tasks = Annotated[
    str,
    argument(
        "TASKS",
        "A folder or file of grid puzzles (ARC, 1D-ARC, Kaggle), rows of input and output, JSON lines of one problem "
        "each, BIG-Bench Hard's folder, or conventions:SPLIT for the designed world that ships.",
    ),
]
Methods = Annotated[
    list[str] | None,
    option(
        "--methods",
        f"What to compare: {', '.join(ROWS)}, or your own package.module:Class. The first five ask in the words of "
        "MASS, those from few-shot on as test-time training trains.",
        default="those that fit the model",
        metavar="NAME,...",
    ),
]
TokenBudget = Annotated[
    int | None,
    option(
        "--token_budget",
        "Sampled tokens a task that the majority vote may spend.",
        default="what the costliest row of MASS sampled",
        min=1,
    ),
]
Folder = Annotated[Path, argument("FOLDER", "A saved MassModel, or a PEFT adapter.")]


@taking(how=HOW, form=table_form)
def solve(
    *,
    problem: Problem,
    how: How,
    form: TableForm,
    each: Annotated[
        bool,
        option("--each", "FILE holds many: a folder, a Kaggle file of challenges, or JSON lines of one problem each."),
    ] = False,
) -> None:
    """Answer a problem before and after adapting to it.

    A problem is an ARC task as JSON, rows of `input` and `output` (CSV, Excel, JSON or JSON lines; rows without an
    output are asked), lines `input -> output`, an object with `problem` and `demonstrations`, or a text. Answers are
    shown with the right one, where the file holds it; a wrong answer is no error.

    ```
    hf-mass solve puzzle.json
    hf-mass solve "abc -> cba" "hello -> olleh" "stone -> enots" "river"
    hf-mass solve puzzle.json --method both --samples 16 --set inner_optimizer=adamw --json
    hf-mass solve arc-agi_evaluation_challenges.json --each --json > answers.jsonl
    cat rows.csv | hf-mass solve - --model Qwen/Qwen2.5-0.5B-Instruct
    hf-mass solve rows.csv --model Qwen/Qwen3-0.6B --chat --dtype bfloat16
    hf-mass solve rows.csv --model models/SmolLM2-135M-Instruct.Q4_1.gguf
    ```

    With --json there is one object, with --each one a line: `before`, `after`, `samples` with `weight` and
    `attribution` (positive: training on the sample makes the solved examples likelier), `losses`, `guard`, `reason`,
    `seconds`.
    """
    raise typer.Exit(_solve(read_problems(problem, each, form), how, each, told=not how.quiet))


@taking(how=HOW, form=table_form)
def adapt(
    *,
    problem: Problem,
    output: Annotated[Path, option("--output -o", "The folder.", panel=REPORT)],
    how: How,
    form: TableForm,
    overwrite: Annotated[
        bool, option("--overwrite", "Write into a folder that holds something.", panel=REPORT)
    ] = False,
) -> None:
    """Adapt to a problem and save the adapted weights as a PEFT adapter.

    `hf-mass solve --model` starts from it, and `peft.PeftModel.from_pretrained` loads it without this package. MASS
    adapts to each question of a problem by itself, so where there are several, each has a sub-folder. Other options are
    those of `solve`.

    ```
    hf-mass adapt puzzle.json --output outputs/puzzle
    hf-mass solve another.json --model outputs/puzzle
    hf-mass adapt rows.csv --output outputs/rows --model Qwen/Qwen2.5-0.5B-Instruct --num_train_epochs 4
    ```
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not overwrite):
        raise CheckpointError(f"{output} is there already. Give a new folder, or --overwrite.")
    _adapt(*read_problems(problem, form=form), output, how, told=not how.quiet)


@taking(model=ModelChoice, settings=settings("weigh_by", "vote"), form=table_form)
def evaluate(
    *,
    context: typer.Context,
    tasks: Tasks,
    methods: Methods = None,
    seeds: Annotated[
        list[str] | None, option("--seeds", "Each method is run once with each.", default="0", metavar="N,...")
    ] = None,
    limit: Annotated[int | None, option("--limit", "Tasks at most.", default="all; 50 of conventions", min=1)] = None,
    demonstrations: Annotated[int, option("--demonstrations", "Rows of a file that are shown as solved.", min=1)] = 10,
    verifier: Annotated[str, option("--verifier", "Judges texts, unless a task names its own.")] = "exact_match",
    batch_size: Annotated[int, option("--batch_size", "Tasks side by side.", min=1)] = 8,
    token_budget: TokenBudget = None,
    guard: Guard = None,
    model: ModelChoice,
    settings: dict[str, Any],
    form: TableForm,
    output: Annotated[
        Path | None,
        option("--output -o", "Gets results.json, results.md, results.png and outcomes.json.", panel=REPORT),
    ] = None,
    resume: Annotated[
        bool, option("--resume", "Go on with the run in the folder, which has the same settings.", panel=REPORT)
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare ways to answer a set of tasks: accuracy with 95% intervals, sampled tokens and seconds a task.

    Every method answers the same tasks with the same model, and is judged by their known answers. The majority vote
    samples as many tokens as the costliest row of MASS.

    ```
    hf-mass evaluate data/evaluation --limit 20 --output outputs/arc
    hf-mass evaluate conventions:test_conventions --methods none,majority,mass-demonstrations --seeds 0,1,2
    hf-mass evaluate rows.csv --model Qwen/Qwen2.5-0.5B-Instruct --demonstrations 8 --json
    ```
    """
    if resume and output is None:
        raise typer.BadParameter("it needs the --output of the run to go on with.", param_hint="--resume")
    _evaluate(
        tasks,
        _listed(methods),
        [int(seed) for seed in _listed(seeds, "--seeds") or ["0"]],
        settings,
        {"batch_size": batch_size, "token_budget": token_budget, "guard": guard},
        model,
        reading={"limit": limit, "demonstrations": demonstrations, "verifier": verifier, "form": form},
        command=context.meta["hf_mass.command"],
        output=output,
        resume=resume,
        as_json=as_json,
        quiet=quiet,
        told=not quiet,
    )


def push(
    folder: Folder,
    repo_id: Annotated[str, argument("REPO_ID", "As in user/name.")],
    private: Annotated[
        bool | None,
        option("--private/--public", "Who sees the repository.", default="as it is; public if it is new"),
    ] = None,
    revision: Annotated[str | None, option("--revision", "Branch to push to.", default="main")] = None,
    commit_message: Annotated[str | None, option("--commit_message", "Of the commit.")] = None,
    create_pr: Annotated[bool, option("--create_pr", "Open a pull request instead of pushing.")] = False,
    token: Annotated[str | None, option("--token", "One that may write.", default=LOGGED_IN)] = None,
    as_json: AsJson = False,
) -> None:
    """Push a saved model or adapter to the Hugging Face Hub.

    Before anything is sent the folder is checked: all files there, safetensors only, a base that others can load.

    ```
    hf-mass push outputs/conventions/adapters user/name --private
    hf-mass push outputs/puzzle user/puzzle --create_pr --commit_message "Adapted to the puzzle"
    ```
    """
    settings = {"private": private, "revision": revision, "commit_message": commit_message, "create_pr": create_pr}
    _push(folder, repo_id, as_json=as_json, token=token, **settings)


def card(
    folder: Folder,
    results: Annotated[
        Path | None,
        option(
            "--results",
            "The results.json of `hf-mass evaluate` or of a trainer's report.",
            default="a card that says that nothing was measured",
        ),
    ] = None,
    output: Annotated[Path | None, option("--output -o", "Where to write the card.", default="print it")] = None,
    repo_id: Annotated[str | None, option("--repo_id", "Where the model will be found.")] = None,
) -> None:
    """Make the model card of a saved model or adapter from what was measured.

    ```
    hf-mass card outputs/conventions/adapters --results outputs/conventions/results.json
    hf-mass card outputs/puzzle --output outputs/puzzle/README.md
    ```
    """
    _card(folder, results, output, repo_id)


@taking(model=ModelChoice)
def demo(
    *,
    model: ModelChoice,
    host: Annotated[
        str | None,
        option("--host", "Where to listen; 0.0.0.0 for all of the network.", default="this machine alone"),
    ] = None,
    port: Annotated[
        int | None, option("--port", "Port.", default="the first free one from 7860", min=1, max=65_535)
    ] = None,
    share: Annotated[bool, option("--share", "Ask Gradio for a public address.")] = False,
) -> None:
    """Open a page in the browser: give a problem, watch the model adapt to it, compare the answers.

    ```
    hf-mass demo
    hf-mass demo --model Qwen/Qwen2.5-0.5B-Instruct --port 8000
    ```
    """
    _launch(model=model.name, host=host, port=port, share=share, told=True, **model.settings())


ALL: tuple[Callable[..., None], ...] = (solve, adapt, evaluate, push, card, demo)
"""In the order of the help."""


def _listed(values: list[str] | None, numbers: str | None = None) -> list[str] | None:
    """Values separated by commas, or by naming the option again, each once; those of the option `numbers` are such."""
    words = [word.strip() for part in values or () for word in part.split(",") if word.strip()]
    for word in words:
        if numbers is not None and not (word.isdecimal() and len(word) < 19):
            raise typer.BadParameter(
                f"{word!r:.60} is no whole number from 0 on, of 18 digits at most.", param_hint=numbers
            )
    return list(dict.fromkeys(words)) or None
