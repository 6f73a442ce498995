"""What the campaigns share: work in processes that may hang or be killed, and reports of what was found.

A campaign does one thing very often, each time a little otherwise, and counts the outcomes. Each time is a process of
its own, forked from one that has imported and loaded all that is needed, so that it costs milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.common import Table, describe_machine, say, write_report
from paths import RESULTS

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock")
"""What a process does to files, as Python's audit hooks call it."""
HANG, DIED = "hang", "died"
"""Outcomes of work that did not end in time, and of work whose process ended without one."""


def forked(work: Callable[[], Any]) -> int:
    """The id of a new process that does the work, says nothing, and ends."""
    if (child := os.fork()) == 0:
        try:
            silence = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(silence, stream)
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as its parent
            os._exit(1)
    return child


def outcomes(
    works: Iterable[Callable[[], tuple[str, str]]], seconds: float, at_once: int = 2
) -> Iterator[tuple[int, str, str, float]]:
    """(number, outcome, remark, seconds) of each piece of work, as they end; each in a process of its own.

    Args:
        works: Each returns an outcome and a remark.
        seconds: Of processor time, or six times as many on the clock, after which a process is ended; its outcome is
            `HANG`. A busy machine is no hang.
        at_once: How many processes there are.
    """
    queue, running = enumerate(works), dict[int, tuple[int, int, float]]()
    while True:
        while len(running) < at_once and (following := next(queue, None)) is not None:
            number, work = following
            reader, writer = os.pipe()
            child = forked(lambda work=work, writer=writer: _tell(writer, work))  # type: ignore[misc]
            os.close(writer)
            running[reader] = (number, child, time.monotonic())
        if not running:
            return
        ready, _, _ = select.select(list(running), [], [], 0.1)
        for reader, (number, child, begun) in list(running.items()):
            spent = time.monotonic() - begun
            if reader in ready:
                text = _heard(reader)
                ended = tuple(json.loads(text)) if text else (DIED, "the process ended without a word")
            elif _processor_time(child) > seconds or spent > 6 * seconds:
                ended = HANG, f"longer than {seconds:g} s"
            else:
                continue
            del running[reader]
            os.close(reader)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            yield number, *ended, spent


def _processor_time(process: int) -> float:
    with suppress(OSError):
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _tell(writer: int, work: Callable[[], tuple[str, str]]) -> None:
    os.write(writer, json.dumps([plain(text)[:1500] for text in work()]).encode())  # at once: no more than a pipe takes


def plain(text: str) -> str:
    """A text that can be written to any file, in one line."""
    return " ".join(text.encode(errors="backslashreplace").decode().split())


def _heard(reader: int) -> bytes:
    parts = list[bytes]()
    while part := os.read(reader, 65_536):
        parts.append(part)
    return b"".join(parts)


def counted(kill_at: int) -> list[int]:
    """Count the files that this process opens, moves and removes from now on, and kill it before the one given."""
    count = [0]

    def hook(event: str, arguments: object) -> None:
        count[0] += event in EVENTS
        if event in EVENTS and count[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def changes_of(work: Callable[[], Any], note: Path) -> int:
    """How many files work opens, moves and removes when nobody kills it."""

    def count() -> None:
        found = counted(0)
        work()
        note.write_text(str(found[0]))

    os.waitpid(forked(count), 0)
    return int(note.read_text())


def campaign_arguments(parser: argparse.ArgumentParser, name: str, **numbers: tuple[int, str]) -> None:
    """Add the numbers (name → default, help), --seed and --output."""
    for option, (default, help) in numbers.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=int, default=default, help=help)
    parser.add_argument("--seed", type=int, default=0, help="draws what differs from time to time")
    parser.add_argument("--output", type=Path, default=RESULTS / "campaigns" / f"{name}.json", help="JSON; and .md")


def report(arguments: argparse.Namespace, title: str, tables: Mapping[str, Table]) -> None:
    """Print the tables and write them, with the machine and the settings."""
    for table in tables.values():
        say(table.to_text() + "\n")
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    write_report(arguments.output, title, tables, describe_machine(), settings)


def counts(title: str, found: Counter[str], notes: Iterable[str] = ()) -> Table:
    """How often there was what, as a table."""
    rows = [{"outcome": outcome, "count": count} for outcome, count in found.most_common()]
    return Table(title, {"outcome": "outcome", "count": "times"}, rows, list(notes))
