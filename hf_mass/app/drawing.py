"""Problems, answers and samples as HTML. Every text that comes from a user or a model is escaped here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from hf_mass.engine.events import Loss, Trial
from hf_mass.methods.base import Answer, GuardEntry
from hf_mass.tasks.checks import shown
from hf_mass.tasks.grids import Grid, parse_grid
from hf_mass.tasks.problems import Problem
from hf_mass.tasks.task import Demonstration

ONE_QUESTION = (
    "No solved example was found: all lines together are one question. Write examples as lines “input -> output”, or "
    "name the columns of a table."
)
CUT = "cut off: it has as many tokens as an answer may have"
"""Of an answer that the model did not end."""
VISIBLE = 8
"""Samples that are seen at once; the others are folded away."""
COLOUR_NAMES = ("black", "blue", "red", "green", "yellow", "grey", "magenta", "orange", "light blue", "maroon")
"""The ten colours of ARC; app.css holds their shades."""


def grid_html(grid: Grid, cell: float | None = None) -> str:
    """A grid in its colours; its label reads it out row by row."""
    width = max(len(grid[0]), 1)
    size = cell or max(0.4, min(1.35, 13 / max(width, len(grid))))
    rows = "; ".join(" ".join(map(str, row)) for row in grid)
    cells = "".join(
        f'<div class="hm-cell hm-c{colour}" title="{COLOUR_NAMES[colour]}">{colour if size > 0.7 else ""}</div>'
        for row in grid
        for colour in row
    )
    return (
        f'<div class="hm-grid" role="img" aria-label="grid of {len(grid)} by {width}: {rows}" '
        f'style="--cell:{size:.2f}rem;grid-template-columns:repeat({width},var(--cell))">{cells}</div>'
    )


def value_html(text: str | None, kind: str) -> str:
    """An input or output: a grid, or text."""
    if text is None:
        return '<span class="hm-muted">nothing that could be read</span>'
    grid = parse_grid(text) if kind == "grids" else None
    return grid_html(grid) if grid is not None else f'<span class="hm-text">{escape(text)}</span>'


def pair_html(pair: Demonstration, kind: str) -> str:
    """An input with its output."""
    arrow = '<span class="hm-arrow" role="img" aria-label="becomes">→</span>'
    return f'<div class="hm-pair">{value_html(pair.question, kind)}{arrow}{value_html(pair.answer or None, kind)}</div>'


def problem_html(problem: Problem) -> str:
    """The demonstrations and queries of a problem."""
    demonstrations = problem.tasks[0].demonstrations
    parts = []
    if demonstrations:
        pairs = "".join(pair_html(pair, problem.kind) for pair in demonstrations)
        title = f"Solved examples ({len(demonstrations)})"
        parts.append(f'<p class="hm-muted">{title}</p><div class="hm-pairs">{pairs}</div>')
    elif any(map(str.strip, problem.tasks[0].problem.splitlines()[1:])):
        parts.append(note_html(ONE_QUESTION))
    queries = "".join(f'<div class="hm-pair">{value_html(t.problem, problem.kind)}</div>' for t in problem.tasks)
    title = "Asked" if len(problem.tasks) == 1 else f"Asked ({len(problem.tasks)})"
    parts.append(f'<p class="hm-muted">{title}</p><div class="hm-pairs">{queries}</div>')
    return f'<div role="group" aria-label="problem {escape(problem.name)}">{"".join(parts)}</div>'


def earlier_html(problem: Problem) -> str:
    """That the results belong to a problem that is no longer the chosen one."""
    asked = f" ({shown(problem.tasks[0].problem, 60)})" if problem.kind == "texts" else ""  # where names may be alike
    return note_html(
        f"What is shown below belongs to an earlier problem, {problem.name}{asked}. Press Adapt for the one chosen now."
    )


def note_html(note: str | None) -> str:
    """What a reader must know before anything else; nothing for None."""
    return "" if note is None else f'<p role="note"><strong>{escape(note)}</strong></p>'


def answers_html(problem: Problem, before: Sequence[Answer], after: Sequence[Answer], model: str = "") -> str:
    """For each query the answers before and after adapting side by side, and the right one where it is known; `model`
    tells what answers."""
    by = f", answered by <strong>{escape(model)}</strong>" if model else ""
    rows = [f'<p class="hm-muted">{escape(problem.name)}{by}</p>']  # not always the one that is shown beside
    for n, task in enumerate(problem.tasks):
        cards = _card("Asked", value_html(task.problem, problem.kind)) if len(problem.tasks) > 1 else ""
        for title, answers in (("Before", before), ("After", after)):
            if n < len(answers):
                cards += _answer_card(title, answers[n], problem.kind)
            else:
                cards += _card(title, '<span class="hm-muted">–</span>')
        if task.answer is not None:
            cards += _card("Right answer", value_html(task.answer, problem.kind))
        rows.append(f'<div class="hm-answers">{cards}</div>')
    return "".join(rows)


def _answer_card(title: str, answer: Answer, kind: str) -> str:
    marks = {None: ("", ""), True: (" ✓ right", " hm-right"), False: (" ✗ wrong", " hm-wrong")}
    mark, style = marks[answer.right]
    body = value_html(answer.text, kind)
    body += f'<div class="hm-muted">{CUT}</div>' if answer.cut else ""
    if answer.written is not None and answer.text is None:
        body += f'<div class="hm-muted">written: <span class="hm-text">{escape(answer.written)}</span></div>'
    return _card(f"{title}{mark}", body, style)


def _card(title: str, body: str, style: str = "") -> str:
    return f'<div class="hm-card{style}"><h4>{escape(title)}</h4>{body}</div>'


def writing_html(texts: Sequence[str]) -> str:
    """Samples while they are written."""
    items = "".join(f'<li><span class="hm-text">{escape(text) or "…"}</span></li>' for text in texts)
    return f'<p class="hm-muted">Samples, as they are written</p><ol>{items}</ol>'


def samples_html(rows: Sequence[dict[str, Any]], kind: str) -> str:
    """Samples by weight, each with its attribution."""
    weights = [row["weight"] if math.isfinite(row["weight"]) else 0.0 for row in rows]
    order = sorted(range(len(rows)), key=lambda i: -weights[i])
    largest = max(weights, default=0.0) or 1.0
    lines = [_sample_row(i + 1, rows[i], weights[i] / largest, kind) for i in order]
    head = "".join(f'<th scope="col">{name}</th>' for name in ("#", "sample", "weight", "attribution", "loss"))

    def table(part: Sequence[str]) -> str:
        return (
            '<div class="hm-scroll" role="region" aria-label="samples" tabindex="0"><table>'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(part)}</tbody></table></div>"
        )

    rest = lines[VISIBLE:]
    more = f"<details><summary>{len(rest)} more of less weight</summary>{table(rest)}</details>" if rest else ""
    return (
        '<p class="hm-muted">Samples by weight. A positive attribution means that training on the sample makes the '
        f"solved examples likelier.</p>{table(lines[:VISIBLE])}{more}"
    )


def _measured(entry: GuardEntry) -> str:
    if not math.isfinite(entry.gain):
        return "ruled out"
    right = f", {entry.right_before} → {entry.right} of {entry.left_out} right" if entry.left_out else ""
    return f"{entry.gain:+.2f} ± {entry.error:.2f}{right}"


def guard_notes_html(guards: Sequence[Mapping[str, Any]]) -> str:
    """What a guard did and why, for each set of demonstrations."""
    return "".join(
        f'<p class="hm-muted">Guard, {guard["seconds"]:.1f} s: {escape(guard["note"])}</p>' for guard in guards
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def _sample_row(number: int, row: dict[str, Any], share: float, kind: str) -> str:
    if row["reason"]:
        what = f'<span class="hm-muted">not usable: {escape(str(row["reason"]))}</span>'
    else:
        what = pair_html(Demonstration(row["question"], row["answer"]), kind)
    bar = f'<span class="hm-bar" style="width:{4 * share:.2f}rem"></span>'
    losses = "–" if row["reason"] else f"{_number(row['loss_before'], '.3f')} → {_number(row['loss_after'], '.3f')}"
    return (
        f"<tr><td>{number}</td><td>{what}</td><td>{bar}{_number(row['weight'], '.3f')}</td>"
        f"<td>{_number(row['attribution'], '+.3g')}</td><td>{losses}</td></tr>"
    )


def status_html(text: str, error: bool = False) -> str:
    """One line on what goes on."""
    role = "alert" if error else "status"
    return f'<div class="hm-status{" hm-error" if error else ""}" role="{role}" aria-live="polite">{escape(text)}</div>'


WIDE, HIGH, LEFT, LOW = 440, 150, 54, 22
"""Size of the plot of losses, and the room for the numbers at its left and below it."""


def losses_html(losses: Sequence[Loss], trials: Sequence[Trial] = ()) -> str:
    """The loss of every step so far: a line for each trial of a guard, and for each method, query after query."""
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}  # (what, class of its style) → points
    for trial in trials:
        lines.setdefault((trial.stage, "trial"), []).append((trial.step, trial.value))
    for loss in losses:
        lines.setdefault((loss.method, loss.method), []).append((loss.step + loss.query * loss.steps, loss.value))
    if not lines:
        return ""
    lines = {name: [point for point in line if math.isfinite(point[1])] for name, line in lines.items()}
    ends = [loss.steps * (loss.query + 1) - 1 for loss in losses] + [trial.steps - 1 for trial in trials]
    last, top = max(1, *ends), max((value for line in lines.values() for _, value in line), default=1.0) or 1.0

    def place(step: int, value: float) -> str:
        return f"{LEFT + (WIDE - LEFT - 8) * step / last:.1f},{8 + (HIGH - LOW - 8) * (1 - value / top):.1f}"

    curves = ""
    for (_, style), line in lines.items():
        points = [place(*point) for point in line]
        x, y = points[-1].split(",") if points else ("", "")
        curves += f'<polyline class="hm-{style}" points="{" ".join(points)}"/>' if points else ""
        curves += f'<circle class="hm-{style}" cx="{x}" cy="{y}" r="3"/>' if points else ""
    (_, zero), (right, _) = place(0, 0).split(","), place(last, 0).split(",")
    axes = (
        f'<path d="M{LEFT} 8V{zero}H{right}"/><text x="{LEFT - 6}" y="14" text-anchor="end">{top:.2g}</text>'
        f'<text x="{LEFT - 6}" y="{zero}" text-anchor="end">0</text><text x="{LEFT}" y="{HIGH - 4}">1</text>'
        f'<text x="{right}" y="{HIGH - 4}" text-anchor="end">step {last + 1}</text>'
    )
    names = {style: "on half of the examples" if style == "trial" else style.upper() for _, style in lines}
    legend = " ".join(f'<span class="hm-key hm-{style}">{name}</span>' for style, name in names.items())
    return (
        f'<p class="hm-muted">Training loss, nats a token {legend}</p><svg class="hm-losses" '
        f'viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(loss_text(losses))}">{axes}{curves}</svg>'
    )


def gains_html(entries: Sequence[GuardEntry]) -> str:
    """What a guard has measured so far: a bar for each strength and share of its steps, the one it chose marked."""
    if not entries:
        return ""
    largest = max([abs(entry.gain) for entry in entries if math.isfinite(entry.gain)], default=0.0) or 1.0
    rows = ""
    for entry in entries:
        share = abs(entry.gain) / largest if math.isfinite(entry.gain) else 0.0
        style = "hm-bar" if entry.gain > 0 else "hm-bar hm-loss"
        mark = ' <strong class="hm-chosen">chosen</strong>' if entry.chosen else ""
        rows += (
            f"<tr><td>{escape(entry.strength)}</td><td>{entry.share:.0%} of the steps</td>"
            f'<td><span class="{style}" style="width:{6 * share:.2f}rem"></span>'
            f"{_measured(entry)}{mark}</td></tr>"
        )
    return (
        '<p class="hm-muted">Left-out gain, nats a token: how much likelier training on half of the examples makes the '
        "answers of the other half, with its standard error. Where none is above 0 and no more are right, the model "
        'stays as it is.</p><div class="hm-scroll" '
        f'role="region" aria-label="left-out gains" tabindex="0"><table class="hm-gains">{rows}</table></div>'
    )


def loss_text(losses: Sequence[Loss]) -> str:
    """The inner loss at its beginning and end, in words."""
    lines: dict[tuple[str, int], list[float]] = {}
    for loss in losses:
        lines.setdefault((loss.method, loss.query), []).append(loss.value)
    return ", ".join(
        f"{method.upper()} loss {_number(values[0], '.3f')} → {_number(values[-1], '.3f')}"
        for (method, _), values in lines.items()
    )
