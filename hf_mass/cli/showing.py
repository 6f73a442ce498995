"""What a person reads: coloured grids, samples with their weights, losses, and answers side by side."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hf_mass.app.drawing import CUT, loss_text
from hf_mass.engine.solution import Solution
from hf_mass.methods.base import Answer
from hf_mass.tasks.grids import parse_grid
from hf_mass.tasks.problems import Problem

COLOURS = tuple(
    f"{'black' if cell in (4, 5, 7, 8) else 'white'} on color({code})"
    for cell, code in enumerate((16, 33, 160, 28, 226, 245, 164, 208, 51, 88))
)
"""Styles of the colours of ARC, from the 256 of a terminal; the digit stays in the cell: colour alone says nothing."""
SHOWN = 6
"""Demonstrations that are shown; further ones are counted."""
WIDE = 160
"""Columns where stdout is no terminal."""
MARKS = {None: "", True: " ✓ right", False: " ✗ wrong"}
STYLES = {None: "bold", True: "bold green", False: "bold red"}


def stdout_console() -> Console:
    """Where results go; colours and the terminal's width only where there is one."""
    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def plain(text: str) -> str:
    """A text whose control characters are shown and not obeyed: it may come from anybody."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def value(text: str | None, kind: str, room: int | None = None) -> Text:
    """An input or output; a grid that is wider than `room` by its size only."""
    if text is None:
        return Text("nothing that could be read", style="dim italic")
    grid = parse_grid(text) if kind == "grids" else None
    if grid is None:
        return Text(plain(text))
    if room is not None and 2 * len(grid[0]) > room:
        return Text(f"grid of {len(grid)} × {len(grid[0])}", style="dim")
    return Text("\n").join(Text.assemble(*((f" {cell}", COLOURS[cell]) for cell in row)) for row in grid)


def titled(title: str, body: RenderableType, style: str = "bold") -> Group:
    """Something with its name above it."""
    return Group(Text(title, style=style), body)


def problem_view(problem: Problem) -> RenderableType:
    """Name, demonstrations and queries."""
    pairs = problem.tasks[0].demonstrations
    views: list[RenderableType] = []
    for pair in pairs[:SHOWN]:
        row = Table.grid(padding=(0, 1))
        row.add_row(value(pair.question, problem.kind), Text("→", style="dim"), value(pair.answer, problem.kind))
        views.append(row)
    if problem.kind == "grids":
        views = [Columns([titled(f"solved {n}", view) for n, view in enumerate(views, 1)], padding=(0, 4))]
    parts: list[RenderableType] = [Text(plain(problem.name), style="bold underline"), *views]
    if len(pairs) > SHOWN:
        parts.append(Text(f"and {len(pairs) - SHOWN} more solved examples", style="dim"))
    return Group(*parts)


def samples_view(rows: Sequence[dict[str, Any]], kind: str, width: int) -> RenderableType:
    """Samples by weight, each with its attribution and its loss before and after."""
    table = Table(box=SIMPLE_HEAD, title="samples by weight", title_justify="left", title_style="bold")
    for name in ("#", "weight", "attribution", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("question")
    table.add_column("answer")
    room = (width - 50) // 2
    for number in sorted(range(len(rows)), key=lambda n: -rows[n]["weight"]):
        row = rows[number]
        attribution = "–" if row["attribution"] is None else f"{row['attribution']:+.2e}"
        losses = "–" if row["reason"] else f"{row['loss_before']:.3f} → {row['loss_after']:.3f}"
        if row["reason"]:
            said = [Text(f"not usable: {plain(str(row['reason']))}", style="dim"), Text("")]
        else:
            said = [value(row["question"], kind, room), value(row["answer"], kind, room)]
        table.add_row(str(number + 1), f"{row['weight']:.3f}", attribution, losses, *said)
    return table


def guard_view(guard: Mapping[str, Any]) -> RenderableType:
    """What the guard measured at each strength, and what it did."""
    note = Text(f"guard ({guard['seconds']:.1f} s): {plain(guard['note'])}")
    if not guard["entries"]:
        return note
    table = Table(box=SIMPLE_HEAD, title="on left-out examples", title_justify="left", title_style="bold")
    for name in ("strength", "steps", "gain, nats a token", "right before → after", ""):
        table.add_column(name, no_wrap=True)
    for entry in guard["entries"]:
        measured = entry["reason"] is None
        gain = f"{entry['gain']:+.3f} ± {entry['error']:.3f}" if measured else "ruled out"
        right = f"{entry['right_before']} → {entry['right']} of {entry['left_out']}" if measured else "–"
        table.add_row(entry["strength"], f"{entry['share']:.0%}", gain, right, "chosen" if entry["chosen"] else "")
    return Group(table, note)


def answers_view(solution: Solution) -> RenderableType:
    """For each query what was asked, the answers before and after, and the right one where it is known."""
    kind, parts = solution.problem.kind, list[RenderableType]()
    for n, task in enumerate(solution.problem.tasks):
        cells: list[RenderableType] = [titled("asked", value(task.problem, kind))]
        for title, answers in (("before", solution.before), ("after", solution.after)):
            cells += [_answer(title, answers[n], kind)] if n < len(answers) else []
        if task.answer is not None:
            cells.append(titled("right answer", value(task.answer, kind)))
        parts.append(Padding(Columns(cells, padding=(0, 4)), (0, 0, 1, 0), expand=False))
    return Group(*parts)


def _answer(title: str, answer: Answer, kind: str) -> RenderableType:
    body: list[RenderableType] = [value(answer.text, kind)]
    if answer.cut:
        body.append(Text(CUT, style="dim"))
    if answer.text is None and answer.written:
        body.append(Text(f"written: {plain(answer.written)}", style="dim"))
    return titled(title + MARKS[answer.right], Group(*body), STYLES[answer.right])


def show_solution(solution: Solution, model: str, console: Console) -> None:
    """All of it, from the problem to the answers; `model` is what answered, in words."""
    console.print(problem_view(solution.problem))
    console.print()
    for n, rows in enumerate(solution.samples):
        if len(solution.samples) > 1:
            console.print(Text(f"for question {n + 1}", style="dim"))
        console.print(samples_view(rows, solution.problem.kind, console.width))
    if solution.losses:
        steps = sum(loss.method == "ttt" for loss in solution.losses)
        console.print(Text(loss_text(solution.losses) + (f" ({steps} steps)" if steps else "")))
        console.print()
    for guard in solution.guards:
        console.print(guard_view(guard))
        console.print()
    console.print(answers_view(solution))
    tokens = f", {solution.sampled_tokens} sampled tokens" if solution.sampled_tokens else ""
    console.print(Text(f"{plain(model)}; method {solution.method}, {solution.seconds:.1f} s{tokens}", style="dim"))
    if solution.reason:
        console.print(Text(f"not all went well: {plain(solution.reason)}", style="yellow"))
