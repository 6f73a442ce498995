"""What adapting at test time adds to the base for string rules: on rules that it never saw, and on trained ones.

In the folder `examples`:

    python -m research.strings.results                                            # runs what is missing, reports
    python -m research.strings.results --sets tuning --rows TTT --set learning_rate=1e-3 --output ../outputs/tuning

Rows: the base, test-time training (`TTTTrainer`), and MASS, whose demonstrations the model writes itself, weighed alike
or by their attribution to the task's own. "+ voting" asks under four orders of the demonstrations. Settings were chosen
on "tuning": composed rules of trained families, at seeds of their own. `<output>/results.json` holds every outcome.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_mass import MassModel, Task, TTTConfig, TTTTrainer
from hf_mass.evaluation.statistics import mean_interval, paired_difference
from hf_mass.evaluation.tables import ResultRow, ResultTable
from hf_mass.methods.base import Adaptation
from hf_mass.methods.mass_settings import InnerConfig, MassConfig
from hf_mass.store.markdown import markdown_table
from hf_mass.store.shipped import ASSETS
from hf_mass.store.storage import replace_text
from hf_mass.tasks.answers import rank_answers
from hf_mass.tasks.formats import FORMATS
from paths import OUTPUTS, RESULTS
from research.strings.parts import RULES, Function, Inputs
from research.strings.world import HELD_OUT, TRAINED, Sizes, few_shot_tasks

SETS = ("held-out", "trained", "composed", "tuning")
TRAINERS = {"base": False, "TTT": True}
"""Row → whether it trains."""
WEIGHINGS = {"MASS uniform": "uniform", "MASS attribution": "demonstrations"}
"""Row → how generated samples are weighed."""
WITHOUT_PARAMETERS = tuple(name for name in HELD_OUT if name != "letters/mask_rest")
"""Held-out families with one rule each, so that generated demonstrations can be judged."""


def load_tasks(name: str, per_family: int) -> list[Task]:
    """The tasks of a set: of held-out families, of trained ones, or of trained ones followed by another rule."""
    seed = f"strings-{'tuning' if name == 'tuning' else 'evaluation'}-{name}"
    sizes = Sizes(composed=float(name in ("composed", "tuning")))
    if name == "held-out":
        return few_shot_tasks(HELD_OUT, per_family, seed, sizes)
    families = random.Random(seed).sample(TRAINED, min(len(TRAINED), len(HELD_OUT) * per_family))
    return few_shot_tasks(families, 1, seed, sizes)


# Rows


def train_and_answer(arguments: argparse.Namespace, name: str, row: str, tasks: list[Task]) -> list[dict[str, Any]]:
    """Outcomes of the base or of test-time training."""
    settings = {
        "output_dir": str(arguments.runs / f"{name}-{row}"),
        "predict_permutations": arguments.votes,
        "seed": arguments.seed,
        "use_cpu": True,
        "report_to": "none",
        **dict(arguments.set),
    }
    trainer = TTTTrainer(str(arguments.base), TTTConfig.preset(arguments.preset, **settings))
    rows = []
    for result in trainer.predict(tasks, resume=False, adapt=TRAINERS[row]):
        answers = {vote: rank_answers(result.predictions, vote) for vote in ("first", "flat")}
        right = {vote: int(found[:1] == [result.task.answer]) for vote, found in answers.items()}
        rows.append(
            {
                **about(result.task),
                "right": right["first"],
                "voted": right["flat"],
                "answer": answers["first"][0] if answers["first"] else None,
                "reason": result.reason,
                "seconds": round(result.seconds, 2),
            }
        )
    return rows


def about(task: Task) -> dict[str, Any]:
    """What tells a task."""
    return {"id": task.id, "domain": task.domain, "wanted": task.answer}


def build_mass(arguments: argparse.Namespace) -> MassModel:
    """The base as a generator of demonstrations, untrained."""
    config = MassConfig(
        samples=arguments.samples,
        temperature=arguments.temperature,
        max_sample_tokens=120,
        max_answer_tokens=80,
        max_length=1024,
        format=FORMATS["plain"],
        inner=InnerConfig(steps=arguments.steps, learning_rate=arguments.rate, lora_rank=16, lora_alpha=16),
    )
    mass = MassModel.from_base(str(arguments.base), config, seed=arguments.seed)
    mass.model.eval()
    return mass


def write_and_answer(arguments: argparse.Namespace, row: str, tasks: list[Task]) -> list[dict[str, Any]]:
    """Outcomes of MASS, with what its samples are like."""
    mass, rows = build_mass(arguments), []
    for start in range(0, len(tasks), 8):
        part, begun = tasks[start : start + 8], time.perf_counter()
        records = mass.adapt(part, WEIGHINGS[row], seed=arguments.seed)
        answers = mass.solve(part, records)
        seconds = round((time.perf_counter() - begun) / len(part), 2)
        for record, answer in zip(records, answers, strict=True):
            # Compared here, since the verifier "exact_match" does not tell upper case from lower.
            right = int(answer.text == record.task.answer)
            outcome = {"right": right, "answer": answer.text, "reason": record.reason}
            rows.append({**about(record.task), **outcome, "seconds": seconds, "samples": told(record)})
    return rows


def told(record: Adaptation) -> list[dict[str, Any]]:
    """Of each sample: whether it could be read, repeats a demonstration, follows the rule (where that is known)."""
    known = {(shown.question, shown.answer) for shown in record.task.demonstrations}
    rule = None
    if record.task.domain in WITHOUT_PARAMETERS:
        _, rule = RULES[record.task.domain](Inputs(random.Random(0), Sizes()))
    samples = []
    for sample, weight in zip(record.samples, record.weights, strict=True):
        row = {"weight": round(float(weight), 4), "read": sample.usable}
        if sample.usable:
            row["copied"] = (sample.question, sample.answer) in known
            if rule is not None and not row["copied"]:
                row["follows"] = follows(rule, sample.question, sample.answer)
        samples.append(row)
    return samples


def follows(rule: Function, question: str, answer: str) -> bool:
    """Whether a pair follows a rule; an input that the rule is not for does not."""
    try:
        return rule(question) == answer
    except (ValueError, IndexError):
        return False


def run(arguments: argparse.Namespace, name: str, row: str) -> dict[str, Any]:
    """Settings and outcomes of one row on one set."""
    tasks = load_tasks(name, arguments.per_family)[: arguments.limit]
    begun = time.perf_counter()
    if row in TRAINERS:
        outcomes = train_and_answer(arguments, name, row, tasks)
    else:
        outcomes = write_and_answer(arguments, row, tasks)
    share, seconds = np.mean([o["right"] for o in outcomes]), time.perf_counter() - begun
    print(f"{name}, {row}: {share:.3f}, n = {len(tasks)}, {seconds:.0f} s", flush=True)
    names = ("preset", "set", "votes") if row in TRAINERS else ("rate", "steps", "samples", "temperature")
    return {"settings": {key: getattr(arguments, key) for key in names}, "outcomes": outcomes}


# Reporting


def shown_rows(found: dict[str, Any]) -> dict[str, dict[str, list[int]]]:
    """Name of a row in the table → set → whether each task was solved."""
    rows: dict[str, dict[str, list[int]]] = {}
    for name, results in found["sets"].items():
        for row, result in results.items():
            rows.setdefault(row, {})[name] = [o["right"] for o in result["outcomes"]]
            if row in TRAINERS:
                rows.setdefault(f"{row} + voting", {})[name] = [o["voted"] for o in result["outcomes"]]
    return rows


def make_table(found: dict[str, Any]) -> ResultTable:
    """Accuracies with their intervals over tasks, and seconds a task."""
    table = []
    for row, sets in shown_rows(found).items():
        every = [results[row]["outcomes"] for results in found["sets"].values() if row in results]
        seconds = [outcome["seconds"] for outcomes in every for outcome in outcomes]
        accuracy = {name: mean_interval(right) for name, right in sets.items()}
        table.append(ResultRow(row, accuracy, latency_s=float(np.mean(seconds)) if seconds else None))
    return ResultTable("String rules", tuple(found["sets"]), tuple(table), {"command": found["command"]})


def differences(found: dict[str, Any]) -> list[str]:
    """Every row against the base on the same tasks."""
    rows = shown_rows(found)
    lines = []
    for row, sets in rows.items():
        plain = "base + voting" if row.endswith("+ voting") else "base"
        for name, right in sets.items():
            if row != plain and len(right) > 1 and name in rows.get(plain, {}):
                before = rows[plain][name]
                gained = sum(a > b for a, b in zip(right, before, strict=True))
                lost = sum(a < b for a, b in zip(right, before, strict=True))
                found_difference = paired_difference(right, before)
                lines.append(f"{name}: {row} − {plain}: {found_difference}; {gained} tasks gained, {lost} lost")
    return lines


def by_family(found: dict[str, Any], name: str) -> str:
    """Solved tasks of each family in a set, row by row, as markdown."""
    results = found["sets"].get(name, {})
    families = list(dict.fromkeys(o["domain"] for result in results.values() for o in result["outcomes"]))
    lines = []
    for family in families:
        each = [[o["right"] for o in result["outcomes"] if o["domain"] == family] for result in results.values()]
        lines.append((family, *(sum(right) for right in each), len(each[0])))
    return markdown_table(("family", *results, "n"), lines)


def sample_lines(found: dict[str, Any]) -> list[str]:
    """What generated samples are like."""
    lines = []
    for name, results in found["sets"].items():
        for row, result in results.items():
            samples = [s for outcome in result["outcomes"] for s in outcome.get("samples", [])]
            if samples:
                shares = {"read": float(np.mean([s["read"] for s in samples]))}
                for key in ("copied", "follows"):
                    if values := [s[key] for s in samples if key in s]:
                        shares[key] = float(np.mean(values))
                told_shares = ", ".join(f"{key} {value:.3f}" for key, value in shares.items())
                lines.append(f"{name}, samples of {row} (n = {len(samples)}): {told_shares}")
    return lines


def report(found: dict[str, Any], output: Path) -> str:
    """Writes results.json and results.md; returns the text."""
    table = make_table(found)
    found["table"] = json.loads(table.to_json())
    lines = [f"    {found['command']}", "", table.to_markdown(), ""]
    lines += [f"- {line}" for line in (*differences(found), *sample_lines(found))]
    settings = {row: r["settings"] for results in found["sets"].values() for row, r in results.items()}
    lines += [f"- settings of {row}: `{json.dumps(values)}`" for row, values in settings.items()]
    if "held-out" in found["sets"]:
        lines += ["", by_family(found, "held-out")]
    replace_text(output / "results.md", "\n".join(lines) + "\n")
    replace_text(output / "results.json", json.dumps(found, ensure_ascii=False) + "\n")
    return "\n".join([table.to_text(), *lines[4:]])


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ASSETS / "strings-base")
    parser.add_argument("--sets", nargs="+", default=["held-out", "trained", "composed"], choices=SETS)
    parser.add_argument("--rows", nargs="+", default=[*TRAINERS, *WEIGHINGS], choices=[*TRAINERS, *WEIGHINGS])
    parser.add_argument(
        "--per_family", type=int, default=6, help="tasks of a held-out family; the other sets are as large"
    )
    parser.add_argument("--limit", type=int, default=None, help="tasks of a set at most")
    parser.add_argument("--preset", default="strings", help="preset of TTTConfig")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="settings of TTTConfig to change")
    parser.add_argument("--votes", type=int, default=4, help="orders of the demonstrations to ask under")
    parser.add_argument("--samples", type=int, default=8, help="m, generated demonstrations of a task")
    parser.add_argument("--rate", type=float, default=0.3, help="inner rate of MASS")
    parser.add_argument("--steps", type=int, default=1, help="inner steps of MASS")
    parser.add_argument("--temperature", type=float, default=1.0, help="of generated demonstrations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=OUTPUTS / "strings", help="where the runs keep their tasks")
    parser.add_argument("--output", type=Path, default=RESULTS / "strings")
    parser.add_argument("--again", action="store_true", help="do finished rows again")
    arguments = parser.parse_args(argv)
    arguments.set = [(item.partition("=")[0], json.loads(item.partition("=")[2])) for item in arguments.set]
    return arguments


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    arguments = parse(argv)
    torch.set_num_threads(1)
    path = arguments.output / "results.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"sets": {}}
    command = " ".join(
        ["python -m research.strings.results", *map(shlex.quote, sys.argv[1:] if argv is None else argv)]
    )
    found["command"] = "; ".join(dict.fromkeys([*found.get("command", command).split("; "), command]))
    for name in arguments.sets:
        results = found["sets"].setdefault(name, {})
        for row in arguments.rows:
            if row not in results or arguments.again:
                results[row] = run(arguments, name, row)
                report(found, arguments.output)
    print(report(found, arguments.output))
    return found


if __name__ == "__main__":
    main()
