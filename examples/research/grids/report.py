"""Tables, goals and plots of `results.py`, made from its outcome files alone."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_mass.evaluation.plots import accuracy_plot
from hf_mass.evaluation.statistics import Interval, mean_interval, paired_difference
from hf_mass.evaluation.tables import ResultRow, ResultTable
from hf_mass.store.markdown import markdown_table

Outcomes = list[dict[str, Any]]

ROWS: tuple[tuple[str, str, str], ...] = (
    ("base", "base", "first"),
    ("base + voting", "base", "hierarchical"),
    ("TTT", "ttt", "first"),
    ("TTT + voting", "ttt", "hierarchical"),
    ("TTT + flat voting", "ttt", "flat"),
    ("TTT + untransformed voting", "ttt", "self_consistency"),
    ("TTT + re-scoring", "ttt", "rescore"),
    ("shared TTT", "shared", "first"),
    ("shared TTT + voting", "shared", "hierarchical"),
    ("no transformations", "no transformations", "first"),
    ("no transformations + voting", "no transformations", "hierarchical"),
    ("no demonstration loss", "query loss", "first"),
    ("no demonstration loss + voting", "query loss", "hierarchical"),
    ("direct input-output", "direct", "first"),
    ("direct input-output + voting", "direct", "hierarchical"),
)
"""(name, variant, vote)."""
NAMES = {
    "1d-arc": "1D-ARC",
    "mini-arc": "Mini-ARC",
    "arc": "ARC-AGI-1 evaluation, short",
    "trained": "made-up, trained families",
    "held-out": "made-up, held-out families",
}


class Results:
    """The outcomes of one base on several sets.

    Args:
        files: One file a set.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.sets: dict[str, dict[str, Any]] = {}
        for file in files:
            content = json.loads(file.read_text(encoding="utf-8"))
            self.sets[content["set"]] = content
        self.order = [name for name in NAMES if name in self.sets]

    def rows(self, name: str, variant: str) -> dict[str, Outcomes]:
        """Seed → outcomes of a variant on a set; empty where it was not run."""
        return {s: run["rows"] for s, run in self.sets[name]["variants"].get(variant, {}).items()}

    def values(self, name: str, variant: str, vote: str, metric: str = "pass_1") -> list[list[float]]:
        """[seeds, tasks]."""
        return [[float(row[vote][metric]) for row in rows] for rows in self.rows(name, variant).values()]

    def puzzles(self, name: str) -> list[str]:
        """The puzzle of each task: test inputs of one puzzle are "<id>_0", "<id>_1", ..."""
        rows = next(iter(next(iter(self.sets[name]["variants"].values())).values()))["rows"]
        return [re.sub(r"_\d+$", "", row["id"]) if name == "arc" else row["id"] for row in rows]

    def interval(self, name: str, values: list[list[float]]) -> Interval:
        """Mean of a set's [seeds, tasks] with an interval over puzzles and seeds."""
        return mean_interval(values, clusters=self.puzzles(name))

    def untrained(self, name: str, variant: str) -> int:
        """Tasks that a variant could not be trained on, over all seeds."""
        return sum(row.get("reason") is not None for rows in self.rows(name, variant).values() for row in rows)


def results_table(results: Results, metric: str, title: str, bare: bool = False) -> ResultTable:
    """One row a method, one column a set; `bare` adds the oracle."""
    rows = []
    for method, variant, vote in ROWS:
        accuracy: dict[str, Interval] = {}
        for name in results.order:
            if found := results.values(name, variant, vote, metric):
                accuracy[NAMES[name]] = results.interval(name, found)
        if accuracy:
            rows.append(ResultRow(method, accuracy))
    if bare:
        for method, variant in (("oracle of the base", "base"), ("oracle of TTT", "ttt")):
            best = {n: results.values(n, variant, "first", "oracle") for n in results.order}
            rows.append(ResultRow(method, {NAMES[n]: results.interval(n, v) for n, v in best.items() if v}))
    return ResultTable(title, tuple(NAMES[name] for name in results.order), tuple(rows))


def untrained(results: Results) -> str:
    """What was not trained on, and so answered by the base, variant by variant."""
    counts = {
        (name, variant): count
        for name in results.order
        for variant in results.sets[name]["variants"]
        if (count := results.untrained(name, variant))
    }
    named = [f"{count} of {NAMES[name]} by {variant!r}" for (name, variant), count in counts.items()]
    return f"Tasks that could not be trained on: {', '.join(named) or 'none'}."


def goals(results: Results) -> list[str]:
    """What was set out for, met or missed."""
    lines = []
    for name in results.order:
        base, ttt = results.values(name, "base", "first"), results.values(name, "ttt", "hierarchical")
        if not base or not ttt or name in ("trained", "held-out"):
            continue
        before, after = results.interval(name, base), results.interval(name, ttt)
        factor = "no finite factor" if before.mean == 0 else f"{after.mean / before.mean:.1f} times"
        met = after.mean >= 6 * before.mean - 1e-9 and after.mean > 0
        difference = paired_difference(ttt, base, clusters=results.puzzles(name))
        lines.append(
            f"- {'met' if met else 'MISSED'}: TTT + voting at least 6 times the base on {NAMES[name]} "
            f"({after} against {before}, {factor}; paired difference {difference})"
        )
        if name == "1d-arc":
            lines.append(f"- {'met' if after.mean >= 0.3 else 'MISSED'}: at least 30% of 1D-ARC ({after})")
    return lines


def groups_table(results: Results, name: str, key: Callable[[Mapping[str, Any]], str]) -> str:
    """pass@1 of base, base + voting, TTT and TTT + voting in groups of tasks."""
    columns = [row for row in ROWS if row[0] in ("base", "base + voting", "TTT", "TTT + voting")]
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    counts: dict[str, int] = defaultdict(int)
    for method, variant, vote in columns:
        for rows in results.rows(name, variant).values():
            for row in rows:
                groups[key(row)][method].append(float(row[vote]["pass_1"]))
                counts[key(row)] += method == "base"
    heads = [method for method, _, _ in columns]
    lines = []
    for group in sorted(groups):
        means = [f"{sum(v) / len(v):.2f}" if (v := groups[group].get(head)) else "–" for head in heads]
        lines.append((group, counts[group], *means))
    return markdown_table(("", "n", *heads), lines)


def difficulty(results: Results, name: str) -> Callable[[Mapping[str, Any]], str]:
    """Groups by how much of the answer the base has right before any training."""
    cells: dict[str, float] = {}
    for rows in results.rows(name, "base").values():
        for row in rows:
            cells.setdefault(row["id"], 1.0 if row["first"]["pass_1"] else row["first"].get("cells", 0.0))

    def key(row: Mapping[str, Any]) -> str:
        value = cells.get(row["id"], 0.0)
        if value == 1.0:
            return "d. base right"
        return "c. base ≥ .8 of the cells" if value >= 0.8 else "b. base < .8" if value > 0 else "a. wrong shape"

    return key


def length(row: Mapping[str, Any]) -> str:
    """Groups by size."""
    cells = row["cells"]
    return f"{'< 128' if cells < 128 else '128 to 255' if cells < 256 else '≥ 256'} cells"


def paper_subset(results: Results) -> str:
    """The ARC tasks run here that are among the paper's 80."""
    chosen = set(results.sets["arc"].get("paper_80", []))
    lines = [f"Of the paper's 80 tasks, {len(chosen)} have fewer than 512 cells:"]
    for method, variant, vote in ROWS:
        for rows in list(results.rows("arc", variant).values())[:1]:
            found = [row[vote] for row in rows if row["id"].split("_")[0] in chosen]
            if found:
                right = [sum(row[k] for row in found) for k in ("pass_1", "pass_2")]
                lines.append(f"{method} {right[0]} and {right[1]} (pass@2) of {len(found)};")
    return " ".join(lines)


def write_report(folder: Path) -> str:
    """Writes `report-<base>.md` and the plots of every base that has outcomes; returns the first table's text."""
    bases: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        bases[json.loads(file.read_text(encoding="utf-8"))["base"]].append(file)
    texts = []
    for base, files in bases.items():
        results = Results([file for file in files if not file.name.startswith("tuning-")])
        if not results.order:
            continue
        seeds = sorted({s for name in results.order for s in results.rows(name, "base")})
        title = f"{base}: pass@1, seeds {', '.join(seeds)}"
        first = results_table(results, "pass_1", title, bare=True)
        second = results_table(results, "pass_2", "pass@2")
        parts = [
            f"# Test-time training on grids, {base}",
            "pass@1:",
            first.to_markdown(),
            untrained(results),
            "\n".join(goals(results)),
        ]
        parts += ["pass@2:", second.to_markdown()]
        if "arc" in results.order:
            parts.append(paper_subset(results))
        for name in results.order:
            parts += [f"## {NAMES[name]}", f"`{results.sets[name]['command']}`"]
            parts += ["By kind:", groups_table(results, name, lambda row: row["domain"])]
            parts += ["By difficulty for the base:", groups_table(results, name, difficulty(results, name))]
            parts += ["By size of the whole task:", groups_table(results, name, length)]
        (folder / f"report-{base}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        accuracy_plot(
            first,
            folder / f"report-{base}.png",
            highlight=[row.method for row in first if row.method == "TTT + voting"],
        )
        texts.append(first.to_text() + "\n" + "\n".join(goals(results)))
    return "\n\n".join(texts)
