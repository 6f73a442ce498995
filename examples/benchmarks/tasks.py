"""Many tasks at once: adapting and answering N tasks, a training step, and the latency of one problem.

In the folder `examples`:

    python -m benchmarks.tasks                        # hidden 256, 8 layers, 8 tasks of 6 rows of 128, float32
    python -m benchmarks.tasks --uneven               # numbers and lengths of rows that differ
    python -m benchmarks.tasks --tables trainer --profile
    python -m benchmarks.tasks --preset llama-1b --output ../outputs/tasks-cuda.json    # a 1B shape on a GPU, bfloat16

Tables, chosen with --tables. "adapt": one step of LoRA for each of N tasks, stacked in one pass over the shared base,
against a loop over PEFT adapters; error is that of the worst task's update, ‖found − loop's‖ / ‖loop's‖. "generate": a
greedy completion of each task at its own weights, stacked, by PEFT's mixed-adapter inference, and by a loop over
adapters. "trainer": a step of `MetaAdaptTrainer` against one of TRL's `GRPOTrainer` that generates as many tokens
(--profile says where the time goes). "latency": one problem, answered greedily, by majority vote at equal sampled
tokens, and by generating, scoring, adapting and answering. The last two run on the CPU.

Writes JSON, and beside it the tables in markdown and plots. Rows have the fields: method, label, seconds (of each
repeat), seconds_median, time_ratio, time_ratio_range (ratios within one repeat); "adapt" also peak_mib, peak_source and
error, "generate" equal (share of tokens), "trainer" and "latency" tokens, "latency" the share of each stage.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.adapters import (
    ADAPT,
    LOOP,
    Many,
    PeftAdapters,
    Stacked,
    draw_weights,
    equal_share,
    peak_memory,
    update_error,
)
from benchmarks.bars import Bar, bar_plot
from benchmarks.common import (
    Table,
    common_arguments,
    describe_machine,
    machine_line,
    say,
    time_interleaved,
    write_report,
)
from benchmarks.latency import latency_table
from benchmarks.metagrad_methods import Setting
from benchmarks.trainer import StepSetting, trainer_tables
from research.conventions.experiment import base_model, load_world

OURS = " (hf_mass)"  # behind the labels of rows to set off
TABLES = ("adapt", "generate", "trainer", "latency")
PRESETS: dict[str, dict[str, Any]] = {
    "toy": {
        "hidden": 32,
        "layers": 2,
        "sequence": 24,
        "tasks": 3,
        "samples": 2,
        "repeats": 2,
        "tasks_per_step": 2,
        "steps": 3,
        "dropped": 1,
        "problems": 2,
    },
    "small": {},
    "llama-1b": {
        "hidden": 2048,
        "layers": 16,
        "heads": 32,
        "kv_heads": 8,
        "intermediate": 8192,
        "vocabulary": 128256,
        "tasks": 16,
        "device": "cuda",
        "dtype": "bfloat16",
        "tables": ["adapt", "generate"],
    },
}


def adapt_table(many: Many, arguments: argparse.Namespace) -> Table:
    """One row for each way to adapt N tasks."""
    names = list(ADAPT)
    peaks = {} if arguments.no_memory else {name: peak_memory(many, name, arguments.threads) for name in names}
    built = {name: method.build(many) for name, method in ADAPT.items()}
    loop = built[LOOP]
    assert isinstance(loop, PeftAdapters)
    start = loop.read()
    loop.adapt()
    reference = loop.read()
    errors = {
        name: update_error(way.adapt(), reference, start) for name, way in built.items() if isinstance(way, Stacked)
    }
    timings = time_interleaved(
        {name: way.adapt for name, way in built.items()}, arguments.repeats, baseline=LOOP, clock=arguments.clock
    )
    rows = [
        {
            "method": name,
            "label": ADAPT[name].label,
            **timings[name].fields,
            "tasks_per_second": many.tasks / timings[name].fields["seconds_median"],
            "error": errors.get(name),
            **peaks.get(name, {}),
        }
        for name in names
    ]
    columns = {
        "label": "method",
        "time_ratio": "time",
        "time_ratio_range": "spread",
        "seconds_median": "seconds",
        "tasks_per_second": "tasks / s",
        "peak_mib": "peak MiB",
        "error": "error",
    }
    stacked = next(way for way in built.values() if isinstance(way, Stacked))
    kind = "uneven rows, a mean of" if many.uneven else "rows of"
    title = f"adapting {many.tasks} tasks, {len(stacked.rows)} {kind} {_mean_length(stacked):.0f} tokens, one step"
    if many.shape.dtype != "float32":
        title += f", {many.shape.dtype}"
    notes = [f"memory: {source}" for source in sorted({peak["peak_source"] for peak in peaks.values()})]
    return Table(title, columns, rows, notes)


def _mean_length(stacked: Stacked) -> float:
    return sum(len(row.prompt_ids) + len(row.answer_ids) for row in stacked.rows) / len(stacked.rows)


def generate_table(many: Many, arguments: argparse.Namespace) -> Table:
    """One row for each way to answer a prompt of each of N tasks at its own weights."""
    stacked, peers = Stacked(many), PeftAdapters(many)
    params = draw_weights(stacked.adapter.lora.start(), many)
    peers.put(params)
    methods: dict[str, tuple[str, Callable[[], list[list[int]]]]] = {
        LOOP: ("loop over PEFT adapters", peers.complete),
        "peft-mixed": ("PEFT, adapter_names", peers.complete_mixed),
        "stacked": ("stacked (hf_mass)", partial(stacked.complete, params)),
    }
    reference = peers.complete()
    timings = time_interleaved(
        {name: run for name, (_, run) in methods.items()}, arguments.repeats, baseline=LOOP, clock=arguments.clock
    )
    rows = [
        {
            "method": name,
            "label": label,
            **timings[name].fields,
            "tokens_per_second": many.tasks * many.new_tokens / timings[name].fields["seconds_median"],
            "equal": equal_share(run(), reference),
        }
        for name, (label, run) in methods.items()
    ]
    columns = {
        "label": "method",
        "time_ratio": "time",
        "time_ratio_range": "spread",
        "seconds_median": "seconds",
        "tokens_per_second": "tokens / s",
        "equal": "equal tokens",
    }
    title = f"{many.new_tokens} greedy tokens for each of {many.tasks} adapted tasks, prompts of {many.prompt}"
    return Table(title, columns, rows)


def plot(tables: Mapping[str, Table], output: Path) -> list[Path]:
    """The ratios of all rows to their table's baseline; those of latency, which are larger, in a file of their own."""
    ratios = [name for name in TABLES if name in tables and name != "latency"]
    panels = {output.with_suffix(".png"): ("Time, the usual way = 1", ratios)}
    panels[output.with_name(f"{output.stem}-latency.png")] = ("One problem, majority vote = 1", ["latency"])
    written = []
    for path, (title, names) in panels.items():
        bars, ours = {}, []
        for name in names:
            for row in tables[name].rows if name in tables else ():
                if row["time_ratio_range"] != [1.0, 1.0]:  # the baseline
                    label = row["label"].replace(OURS, "")
                    label = label if name == "latency" else f"{name}: {label}"
                    bars[label] = Bar(row["time_ratio"], tuple(row["time_ratio_range"]))
                    ours += [label] if row["label"].endswith(OURS) else []
        if bars:
            written.append(bar_plot([[("", bars)]], path, title=title, highlight=ours))
    return written


def parse_arguments() -> argparse.Namespace:
    """The command line; a preset changes the defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small", help="a shape; other options change it")
    common_arguments(parser, "tasks.json")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    shape = parser.add_argument_group("shape of adapt and generate")
    for item in fields(Setting):
        if item.name not in ("device", "dtype", "upcast", "rows", "outer_rows", "microbatch"):
            kind = float if item.name == "learning_rate" else int
            shape.add_argument(f"--{item.name}", type=kind, default=item.default)
    for many in fields(Many):
        if many.name != "shape":
            flag = (
                {"action": "store_true"} if isinstance(many.default, bool) else {"type": int, "default": many.default}
            )
            shape.add_argument(f"--{many.name}", **flag)
    shape.add_argument("--no_memory", action="store_true", help="leave peak memory out (a process for each method)")
    step = parser.add_argument_group("trainer and latency")
    for part in fields(StepSetting):
        if part.name not in ("clock", "hidden", "layers"):
            step.add_argument(f"--{part.name}", type=int, default=part.default)
    step.add_argument("--grown_hidden", type=int, default=0, help="grow the tiny base to this width, same function")
    step.add_argument("--grown_layers", type=int, default=0, help="and to this many layers")
    step.add_argument("--profile", action="store_true", help="where a training step's time goes")
    step.add_argument("--problems", type=int, default=8, help="problems whose latency is measured")
    chosen, _ = parser.parse_known_args()
    parser.set_defaults(**PRESETS[chosen.preset])
    return parser.parse_args()


def measure_tables(arguments: argparse.Namespace) -> dict[str, Table]:
    """The tables asked for, each printed as soon as it is there."""
    given = vars(arguments)
    shape = Setting(**{item.name: given[item.name] for item in fields(Setting) if item.name in given})
    many = Many(shape, **{item.name: given[item.name] for item in fields(Many) if item.name != "shape"})
    step = StepSetting(
        arguments.tasks_per_step,
        arguments.steps,
        arguments.dropped,
        arguments.grown_hidden,
        arguments.grown_layers,
        arguments.clock,
    )
    tables: dict[str, Table] = {}

    def add(found: Mapping[str, Table]) -> None:
        for name, table in found.items():
            tables[name] = table
            say("\n" + table.to_text())

    if "adapt" in arguments.tables:
        add({"adapt": adapt_table(many, arguments)})
    if "generate" in arguments.tables:
        add({"generate": generate_table(many, arguments)})
    if "trainer" in arguments.tables:
        add(trainer_tables(step, base_model(0), arguments.repeats, arguments.profile))
    if "latency" in arguments.tables:
        problems = load_world().tasks("validation", arguments.problems, seed=0)
        add({"latency": latency_table(base_model(0), problems, arguments.repeats, arguments.clock)})
    return tables


def main() -> None:
    """Measure what was asked for, print it, and write it."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    disable_progress_bar()
    machine = describe_machine(arguments.device)
    say(machine_line(machine))
    tables = measure_tables(arguments)
    options = {key: value for key, value in vars(arguments).items() if key != "output"}
    write_report(arguments.output, "Many tasks at once", tables, machine, options)
    plot(tables, arguments.output)


if __name__ == "__main__":
    main()
