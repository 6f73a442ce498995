"""Gives bad inputs of every class at every boundary, and counts what becomes of them.

    python -m benchmarks.bad_inputs --cases 500

The cases stand in tables, `bad_input_*.py`: classes of what is wrong (NaN, a list for a number, a truncated file, a
pattern that backtracks) at each place where something comes in. As many are drawn, evenly over the boundaries, and each
runs in a process of its own with ten seconds. It is refused (an error of `hf_mass.errors`, or a `ValueError` that names
the field, of one line), it works, or something is wrong: another exception, a hang, an input that cannot be meant and
goes through. `--cases 0` runs all there are.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import constants

from benchmarks.bad_input_case import Case, Wrong
from benchmarks.bad_input_files import file_cases
from benchmarks.bad_input_folders import folder_cases
from benchmarks.bad_input_settings import setting_cases
from benchmarks.bad_input_words import word_cases
from benchmarks.campaigns import DIED, HANG, campaign_arguments, outcomes, plain, report
from benchmarks.common import Table, say
from hf_mass.errors import HFMassError, Stopped

SECONDS = 10.0
MEMORY = 8 * 2**30
"""Bytes that a case may take beyond what its process begins with."""
REFUSED, WORKED, UNCLEAR, TRACEBACK, WRONG = "refused", "worked", "refused unclearly", "traceback", "silently wrong"
LONGEST = 1_000
"""Characters of a refusal that somebody reads."""


def outcome(case: Case, folder: Path) -> tuple[str, str]:
    """What becomes of a case, and the words of it."""
    os.chdir(folder)
    constants.HF_HUB_OFFLINE = True  # what is not here is not asked for elsewhere
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.run(folder)
    except Wrong as error:
        return WRONG, str(error)
    except Stopped:
        return WORKED, "until the time limit"
    except (HFMassError, ValueError) as error:
        text = str(error)
        named = case.names.lower() in text.lower()
        if not isinstance(error, HFMassError) and not (named and case.names):
            return TRACEBACK, f"{type(error).__name__}: {text}"
        return REFUSED if named and "\n" not in text and 0 < len(text) <= LONGEST else UNCLEAR, text
    except Exception as error:  # noqa: BLE001 - which is what is looked for
        return TRACEBACK, f"{type(error).__name__}: {error}"
    return (WRONG, "it went through") if case.refused else (WORKED, "")


def drawn(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """So many cases, in turn from each boundary and each class of it; all of them for 0."""
    if not count:
        return list(cases)
    draw, groups = random.Random(seed), defaultdict[str, defaultdict[str, list[Case]]](lambda: defaultdict(list))
    for case in draw.sample(cases, len(cases)):
        groups[case.boundary][case.kind].append(case)
    chosen = list[Case]()
    while len(chosen) < min(count, len(cases)):
        for kinds in groups.values():
            fullest = max(kinds, key=lambda kind: len(kinds[kind]), default=None)
            if kinds and fullest is not None and len(chosen) < count:
                rarest = next(iter(kinds))
                chosen.append(kinds[rarest].pop())
                kinds[rarest] = kinds.pop(rarest)  # to the end: the next one is of another class
                if not kinds[rarest]:
                    del kinds[rarest]
    return chosen


def campaign(cases: Sequence[Case], folder: Path) -> list[tuple[Case, str, str]]:
    """(case, outcome, words) of each."""
    works = list[Callable[[], tuple[str, str]]]()
    for number, case in enumerate(cases):
        place = folder / str(number)
        place.mkdir()
        works.append(partial(outcome, case, place))
    found = dict[int, tuple[str, str]]()
    for number, what, words, _ in outcomes(works, SECONDS):
        found[number] = what, words
        if what not in (REFUSED, WORKED):
            say(plain(f"{what}: {cases[number]}: {words[:300]}"))
        if len(found) % 100 == 0:
            say(f"{len(found)} of {len(cases)}")
    return [(case, *found[number]) for number, case in enumerate(cases)]


def tables(found: Sequence[tuple[Case, str, str]]) -> dict[str, Table]:
    """Outcomes by boundary, and what was wrong."""
    names = (REFUSED, WORKED, UNCLEAR, TRACEBACK, HANG, DIED, WRONG)
    by_boundary = defaultdict[str, Counter[str]](Counter)
    for case, what, _ in found:
        by_boundary[case.boundary][what] += 1
        by_boundary["all"][what] += 1
    rows = [
        {"boundary": name, "cases": each.total(), **{what: each[what] for what in names}}
        for name, each in sorted(by_boundary.items(), key=lambda item: item[0] == "all")
    ]
    columns = {"boundary": "boundary", "cases": "cases", **dict.fromkeys(names, "")}
    columns |= {name: name for name in names}
    faults = [
        {"case": plain(str(case)), "outcome": what, "words": words[:300]}
        for case, what, words in found
        if what not in (REFUSED, WORKED)
    ]
    columns_of_cases = {"case": "case", "outcome": "outcome", "words": "words"}
    return {
        "outcomes": Table("What became of bad inputs", columns, rows),
        "faults": Table("Faults", columns_of_cases, faults),
    }


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    campaign_arguments(parser, "bad_inputs", cases=(500, "how many are drawn; 0 for all"))
    parser.add_argument("--only", default="", help="of the boundaries whose name holds this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = folder / "made"
        made.mkdir()
        cases = [*setting_cases(), *file_cases(), *folder_cases(made), *word_cases(made)]
        cases = drawn([case for case in cases if arguments.only in case.boundary], arguments.cases, arguments.seed)
        (folder / "cases").mkdir()
        report(arguments, "Bad inputs", tables(campaign(cases, folder / "cases")))


if __name__ == "__main__":
    main()
