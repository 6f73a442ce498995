"""What attributions cost over plain fine-tuning: time and peak memory of every method, in one run on one machine.

In the folder `examples`:

    python -m benchmarks.metagrad                                   # hidden 256, 8 layers, 12 rows of 128, float32
    python -m benchmarks.metagrad --device cuda --output ../outputs/metagrad-cuda.json
    python -m benchmarks.metagrad --preset llama-3.1-8b             # the shape of an 8B model, random weights, bf16

Two tables, chosen with --tables. "cost": every method as a multiple of the first-order passes (K inner steps and one
outer pass, written with PEFT and PyTorch alone) with the same K, and the relative error of its attributions
(‖found − reference‖ / ‖reference‖) against an unrolled graph in float32. "layers": peak memory at two depths, beside
what a layer's input, a layer's activations and a set of LoRA matrices take.

Writes JSON, and beside it the tables in markdown and a plot. A row of the cost table has the fields: method, label,
steps, status ("measured", or "absent" with a reason), seconds (of each repeat), seconds_median, seconds_range,
time_ratio, time_ratio_range (ratios within one repeat), peak_mib, peak_source, memory_ratio, error.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.bars import Bar, bar_plot
from benchmarks.common import (
    MEBIBYTE,
    MethodUnavailable,
    Table,
    answer_child,
    common_arguments,
    describe_machine,
    machine_line,
    measure_peak,
    run_in_child,
    say,
    show,
    time_interleaved,
    write_report,
)
from benchmarks.metagrad_methods import BASELINE, DTYPES, METHODS, Setting, build_problem, warm_up_problem

PRESETS: dict[str, dict[str, Any]] = {
    "toy": {"hidden": 64, "layers": 2, "sequence": 32},
    "small": {},
    "llama-3.1-8b": {
        "hidden": 4096,
        "layers": 32,
        "heads": 32,
        "kv_heads": 8,
        "intermediate": 14336,
        "vocabulary": 128256,
        "rows": 12,
        "sequence": 1024,
        "microbatch": 4,  # the plain passes on all rows at once do not fit in 140 GB
        "learning_rate": 0.1,
        "steps": [2],
        "device": "cuda",
        "dtype": "bfloat16",
        "tables": ["cost"],
        "reference": "adjoint-lean",
    },
}
DEEPER = 4
COLUMNS = {
    "label": "method",
    "time_ratio": "time",
    "time_ratio_range": "spread",
    "seconds_median": "seconds",
    "memory_ratio": "memory",
    "peak_mib": "MiB",
    "error": "error",
    "reason": "why there is no figure",
}


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: the peak memory of one method and the attributions that it finds."""
    problem = build_problem(Setting(**request["setting"]))
    run, steps = METHODS[request["method"]].run, request["steps"]
    run(warm_up_problem(problem), steps)
    found: list[torch.Tensor | None] = []
    peak = measure_peak(lambda: found.append(run(problem, steps)), problem.setting.device)
    attributions = found[0].tolist() if found[0] is not None else None
    return {"peak_mib": peak.mib, "peak_source": peak.source, "attributions": attributions}


@cache
def ask(setting: Setting, method: str, steps: int, threads: int) -> dict[str, Any]:
    """`measure` in a fresh process, once for each question; where it fails, the reason."""
    request = {"setting": asdict(setting), "method": method, "steps": steps}
    try:
        return {"status": "measured", "reason": None} | run_in_child("benchmarks.metagrad", request, threads)
    except MethodUnavailable as reason:
        return {"status": "absent", "reason": str(reason)}


def quotient(value: float | None, floor: float | None) -> float | None:
    """value / floor; None where either was not measured or the floor is too small to be."""
    return value / floor if value is not None and floor else None


def relative_error(found: list[float] | None, reference: list[float] | None) -> float | None:
    """‖found − reference‖ / ‖reference‖; None where either is missing."""
    if found is None or reference is None:
        return None
    x, y = torch.tensor(found, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64)
    return ((x - y).norm() / y.norm()).item()


def find_reference(setting: Setting, method: str, steps: int, threads: int) -> tuple[list[float] | None, str]:
    """(the attributions that errors are taken against, what they are)."""
    if method == "none":
        return None, "no reference"
    answer = ask(replace(setting, upcast=setting.dtype != "float32"), method, steps, threads)
    if answer["reason"]:
        return None, f"the reference ({METHODS[method].label}, float32) failed: {answer['reason']}"
    return answer["attributions"], f"errors are against: {METHODS[method].label}, float32"


def cost_table(setting: Setting, steps: int, arguments: argparse.Namespace) -> Table:
    """One row per method at one K."""
    threads, names = arguments.threads, arguments.methods
    answers = {}
    for name in names:  # before this process holds a model: the two would share the memory of a GPU
        answers[name] = ask(setting, name, steps, threads)
        say(f"K = {steps}, {name}: {answers[name]['reason'] or show(answers[name]['peak_mib']) + ' MiB'}")
    reference, note = find_reference(setting, arguments.reference, steps, threads)
    problem = build_problem(setting)
    runs = {name: partial(METHODS[name].run, problem, steps) for name in names if answers[name]["status"] == "measured"}
    timings = time_interleaved(
        runs, arguments.repeats, baseline=BASELINE if BASELINE in runs else None, clock=arguments.clock
    )
    floor = answers.get(BASELINE, {}).get("peak_mib")
    rows = []
    for name, answer in answers.items():
        row = {"method": name, "label": METHODS[name].label, "steps": steps, **answer}
        row["error"] = relative_error(row.pop("attributions", None), reference)
        if name in timings:
            row |= timings[name].fields
        row["memory_ratio"] = quotient(answer.get("peak_mib"), floor)
        rows.append(row)
    title = f"K = {steps}: multiples of the first-order passes (median of {arguments.repeats} interleaved repeats)"
    notes = sorted({f"memory: {row['peak_source']}" for row in rows if row.get("peak_source")})
    columns = {key: header for key, header in COLUMNS.items() if key != "reason" or any(r["reason"] for r in rows)}
    return Table(title, columns, rows, [note, *notes])


def steps_table(tables: Mapping[int, Table]) -> Table:
    """Peak memory as K grows, from the cost tables."""
    first, last = min(tables), max(tables)
    peaks: dict[str, dict[str, Any]] = {}
    for steps, table in sorted(tables.items()):
        for row in table.rows:
            entry = peaks.setdefault(row["method"], {"method": row["method"], "label": row["label"]})
            entry[f"peak_mib_{steps}"] = row.get("peak_mib")
    for entry in peaks.values():
        entry["ratio"] = quotient(entry[f"peak_mib_{last}"], entry[f"peak_mib_{first}"])
    columns = {"label": "method", **{f"peak_mib_{steps}": f"MiB, K = {steps}" for steps in sorted(tables)}}
    title = f"peak memory as K grows, K = {last} over K = {first}"
    return Table(title, {**columns, "ratio": "ratio"}, list(peaks.values()))


def layers_table(setting: Setting, arguments: argparse.Namespace) -> Table:
    """Peak memory at two depths, and what one more layer adds."""
    deeper = arguments.deep_layers or DEEPER * setting.layers
    wanted = [name for name in (BASELINE, "adjoint-fast", "adjoint-lean") if name in arguments.methods]
    rows = []
    for name in wanted:
        for steps in sorted({min(arguments.steps), max(arguments.steps)}):
            row: dict[str, Any] = {"method": name, "label": f"{METHODS[name].label}, K = {steps}", "steps": steps}
            for key, layers in (("peak_mib", setting.layers), ("peak_mib_deep", deeper)):
                answer = ask(replace(setting, layers=layers), name, steps, arguments.threads)
                row |= {"status": answer["status"], "reason": answer["reason"], key: answer.get("peak_mib")}
                if answer["reason"]:
                    break
            else:
                row["ratio"] = quotient(row["peak_mib_deep"], row["peak_mib"])
                row["layer_mib"] = (row["peak_mib_deep"] - row["peak_mib"]) / (deeper - setting.layers)
            say(f"{row['label']}: {row['reason'] or show(row['ratio'])}")
            rows.append(row)
    columns = {
        "label": "method",
        "peak_mib": f"MiB, {setting.layers} layers",
        "peak_mib_deep": f"MiB, {deeper} layers",
        "ratio": "ratio",
        "layer_mib": "MiB / layer",
        "reason": "why there is no figure",
    }
    if not any(row["reason"] for row in rows):
        del columns["reason"]
    return Table("peak memory and depth", columns, rows, _layer_notes(setting, rows))


def _layer_notes(setting: Setting, rows: list[dict[str, Any]]) -> list[str]:
    """What the parts of one layer take, to compare the growth with."""
    width = DTYPES[setting.dtype].itemsize
    layer_input = setting.rows * setting.sequence * setting.hidden * width / MEBIBYTE
    problem = build_problem(replace(setting, device="cpu", layers=1, vocabulary=8, rows=2, outer_rows=2))
    matrices = 4 * sum(leaf.numel() for leaf in problem.lora.start().values()) / MEBIBYTE
    notes = [
        f"one layer, estimated: its input {show(layer_input)} MiB for all {setting.rows} rows (hidden state; a tangent "
        f"takes as much again); one set of LoRA matrices {show(matrices)} MiB, one for each row "
        f"{show(setting.rows * matrices)} MiB"
    ]
    plain = [row["layer_mib"] for row in rows if row["method"] == BASELINE and "layer_mib" in row]
    if plain:
        notes.append(
            f"activations of one layer, measured: {show(plain[0])} MiB for the plain pass over all rows at once"
        )
    return notes


def plot(tables: Mapping[int, Table], path: Path) -> Path:
    """Time and memory by method, a panel for each K."""
    shown = [row["label"] for row in next(iter(tables.values())).rows if row["method"] != BASELINE]
    panels = []
    for key, what in (("time_ratio", "time"), ("memory_ratio", "peak memory")):
        line = []
        for steps, table in tables.items():
            bars = {}
            for row in table.rows:
                spread = row.get(f"{key}_range")
                bars[row["label"]] = Bar(row.get(key), tuple(spread) if spread else None, "does not run here")
            line.append((f"{what}, K = {steps}", {label: bars[label] for label in shown}))
        panels.append(line)
    ours = [method.label for method in METHODS.values() if method.ours]
    return bar_plot(panels, path, title="Attributions as multiples of the first-order passes", highlight=ours)


def parse_arguments() -> argparse.Namespace:
    """The command line; a preset changes the defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small", help="a shape; other options change it")
    common_arguments(parser, "metagrad.json")
    own = parser.add_argument_group("shape")
    for item in fields(Setting):
        if item.name not in ("device", "dtype", "upcast"):
            own.add_argument(
                f"--{item.name}", type=float if item.name == "learning_rate" else int, default=item.default
            )
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4], help="numbers K of inner steps")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--reference", choices=["none", *METHODS], default="create-graph", help="run in float32")
    parser.add_argument("--tables", nargs="+", choices=["cost", "layers"], default=["cost", "layers"])
    parser.add_argument("--deep_layers", type=int, default=0, help=f"0 for {DEEPER} times --layers")
    chosen, _ = parser.parse_known_args()
    parser.set_defaults(**PRESETS[chosen.preset])
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for, print it, and write it."""
    if answer_child(measure):
        return
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    setting = Setting(**{item.name: getattr(arguments, item.name) for item in fields(Setting) if item.name != "upcast"})
    machine = describe_machine(setting.device)
    say(machine_line(machine))
    tables: dict[str, Table] = {}
    if "cost" in arguments.tables:
        by_steps = {steps: cost_table(setting, steps, arguments) for steps in arguments.steps}
        tables = {f"cost_{steps}": table for steps, table in by_steps.items()}
        if len(by_steps) > 1:
            tables["steps"] = steps_table(by_steps)
        plot(by_steps, arguments.output.with_suffix(".png"))
    if "layers" in arguments.tables:
        tables["layers"] = layers_table(setting, arguments)
    options = {key: value for key, value in vars(arguments).items() if key != "output"}
    write_report(arguments.output, "Cost of attributions", tables, machine, options)
    for table in tables.values():
        say("\n" + table.to_text())


if __name__ == "__main__":
    main()
