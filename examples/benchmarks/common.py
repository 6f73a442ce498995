"""What the benchmarks share: the machine, interleaved timing, peak memory in a fresh process, tables and JSON.

Two rules keep the figures honest. Methods are timed in turn (A, B, C, A, B, C, ...) and each ratio is taken within one
turn, so a machine that slows down slows both sides of it. Peak memory is read from the operating system in a process of
its own for each method, because what one method leaves behind would hide what the next one needs.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hf_mass.store.markdown import markdown_table
from paths import EXAMPLES, RESULTS

FORMAT_VERSION = 1
MEBIBYTE = 2**20
CHILD_OPTION = "--child"
_PACKAGES = ("torch", "transformers", "peft", "torchopt", "higher")


class MethodUnavailable(Exception):
    """A method cannot run here; the text says why and is shown in its row."""


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """What a figure depends on: processor, cores, threads, versions, and the accelerator where it is used."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(torch.device(device))
        found |= {"gpu": properties.name, "gpu_gib": round(properties.total_memory / 2**30, 1)}
    return found


def machine_line(machine: Mapping[str, Any]) -> str:
    """The description in one line."""
    gpu = f"{machine['gpu']} ({machine['gpu_gib']} GiB), " if "gpu" in machine else ""
    versions = ", ".join(f"{name} {machine[name]}" for name in _PACKAGES if machine.get(name))
    return f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread(s); {versions}"


def _cpu_name() -> str:
    with contextlib.suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Timing:
    """Seconds of one method over the repeats, and as multiples of the baseline's.

    Args:
        seconds: One entry per repeat.
        ratios: seconds / the baseline's seconds in the same repeat; None without a baseline.
    """

    seconds: list[float]
    ratios: list[float] | None

    @property
    def fields(self) -> dict[str, Any]:
        """Medians and spread (smallest and largest), as they stand in a row of the JSON file."""
        found: dict[str, Any] = {
            "seconds": self.seconds,
            "seconds_median": statistics.median(self.seconds),
            "seconds_range": [min(self.seconds), max(self.seconds)],
        }
        if self.ratios is not None:
            found |= {
                "time_ratio": statistics.median(self.ratios),
                "time_ratio_range": [min(self.ratios), max(self.ratios)],
            }
        return found


def time_interleaved(
    methods: Mapping[str, Callable[[], object]], repeats: int, *, baseline: str | None = None, clock: str = "wall"
) -> dict[str, Timing]:
    """Run every method once to warm up, then all of them in turn, `repeats` times.

    Args:
        methods: What to time, by name.
        repeats: Number of turns.
        baseline: The method that ratios are taken against, turn by turn.
        clock: "wall", or "cpu" for this process's processor time (steadier on a shared machine; CPU work only).
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    gc.collect()
    gc.freeze()  # what is alive now need not be looked through again before every run
    try:
        for method in methods.values():
            _timed(method, clock)  # to warm up
        for _ in range(repeats):
            for name, method in methods.items():
                seconds[name].append(_timed(method, clock))
    finally:
        gc.unfreeze()
    floor = seconds.get(baseline) if baseline is not None else None
    return {
        name: Timing(found, [x / y for x, y in zip(found, floor, strict=True)] if floor else None)
        for name, found in seconds.items()
    }


def _timed(method: Callable[[], object], clock: str) -> float:
    gc.collect()  # garbage of the method before is not this one's cost
    _synchronize()
    start = CLOCKS[clock]()
    method()
    _synchronize()
    return CLOCKS[clock]() - start


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Peak:
    """How far memory rose above what was in use before the work.

    Args:
        mib: The rise in MiB.
        source: Where the figure comes from, with its weakness where it has one.
    """

    mib: float
    source: str


def measure_peak(work: Callable[[], object], device: str = "cpu") -> Peak:
    """Memory that `work` needs at its peak. Call it in a process of its own, after a small warm-up (`run_in_child`)."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return Peak((torch.cuda.max_memory_allocated() - allocated) / MEBIBYTE, "CUDA allocator")
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)  # else the work would be given what the warm-up has left, and not be charged
    before, flaw = _status_bytes("VmRSS") or 0, ""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # puts the high-water mark back to now
    except OSError as error:
        flaw = f" of the whole process, an upper bound (/proc/self/clear_refs: {type(error).__name__})"
    work()
    peak, source = _status_bytes("VmHWM"), "VmHWM"
    if peak is None:
        unit = 1 if sys.platform == "darwin" else 1024
        peak, source = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "ru_maxrss"
    return Peak((peak - before) / MEBIBYTE, source + flaw)


def _status_bytes(name: str) -> int | None:
    with contextlib.suppress(OSError):  # not Linux
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def run_in_child(module: str, request: Mapping[str, Any], threads: int = 1, timeout: float | None = None) -> Any:
    """Answer `request` in a fresh process of `module` (which calls `answer_child` first thing) and return the answer.

    Raises:
        MethodUnavailable: If the process fails; the text is the last line of its error.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        # Freed blocks of a mebibyte or more go back to the system at once, so that the peak is what was in use.
        "MALLOC_MMAP_THRESHOLD_": str(MEBIBYTE),
    }
    command = [sys.executable, "-m", module, CHILD_OPTION, json.dumps(request)]
    try:
        done = subprocess.run(
            command, cwd=EXAMPLES, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise MethodUnavailable(f"took longer than {timeout:g} s") from error
    if done.returncode < 0:
        raise MethodUnavailable(f"ended by signal {-done.returncode} (9: out of memory)")
    if done.returncode:
        raise MethodUnavailable((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300])
    return json.loads(done.stdout.strip().splitlines()[-1])


def answer_child(answer: Callable[[dict[str, Any]], Any]) -> bool:
    """Whether this process was started by `run_in_child`; if so, the answer has been printed and main should return."""
    if len(sys.argv) != 3 or sys.argv[1] != CHILD_OPTION:
        return False
    request = json.loads(sys.argv[2])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        answered = answer(request)
    except MethodUnavailable as reason:
        sys.exit(str(reason))
    except Exception as error:  # noqa: BLE001 - the parent shows it as the reason why there is no figure
        traceback.print_exc()
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
    print(json.dumps(answered), flush=True)
    return True


@dataclass
class Table:
    """Rows of figures under a title.

    Args:
        title: What was measured.
        columns: Header by key of the rows' entries; entries without a column are in the JSON file alone.
        rows: One per method; an entry that is missing or None is shown as a dash.
        notes: Lines below the table.
    """

    title: str
    columns: dict[str, str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_text(self) -> str:
        """The table for a terminal: title, aligned columns, notes."""
        cells = self._cells()
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        header, *body = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in cells]
        return "\n".join(line.rstrip() for line in [self.title, header, "-" * len(header), *body, *self.notes])

    def to_markdown(self) -> str:
        """The same in GitHub's markdown."""
        header, *body = self._cells()
        return "\n".join([f"### {self.title}", "", markdown_table(header, body, len(header)), "", *self.notes])

    def _cells(self) -> list[list[str]]:
        header = list(self.columns.values())
        return [header, *([show(row.get(key)) for key in self.columns] for row in self.rows)]


def show(value: Any) -> str:
    """One cell: a number with two decimals where it is small, a range as low–high, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return "–".join(show(part) for part in value)
    if isinstance(value, float):
        small = value != 0 and abs(value) < 1e-2
        return f"{value:.1e}" if small else f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    return str(value)


def write_report(
    output: Path, title: str, tables: Mapping[str, Table], machine: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Write `output` (JSON) and, beside it, the tables in markdown.

    The JSON file holds format, title, command, machine, settings, and the tables by name, each with its title, columns,
    rows and notes.
    """
    command = " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    record = {
        "format": FORMAT_VERSION,
        "title": title,
        "command": command,
        "machine": dict(machine),
        "settings": dict(settings),
        "tables": {name: asdict(table) for name, table in tables.items()},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    parts = [f"## {title}", "", f"`{command}`", "", machine_line(machine), ""]
    for table in tables.values():
        parts += [table.to_markdown(), ""]
    output.with_suffix(".md").write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def say(text: str) -> None:
    """Print at once, so that a long run can be followed."""
    print(text, flush=True)


def common_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """Add what every benchmark takes: --repeats --device --dtype --threads --clock --output."""
    default = RESULTS / output
    parser.add_argument("--repeats", type=int, default=5, help="timed turns, after one to warm up")
    parser.add_argument("--device", default="cpu", help="'cpu' or 'cuda'")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the frozen base")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch's CPU kernels")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="'cpu' is steadier on a shared machine")
    parser.add_argument("--output", type=Path, default=default, help="JSON; .md and .png are written beside it")
