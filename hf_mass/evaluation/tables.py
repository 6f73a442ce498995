"""Tables of results: one row per method, one accuracy with its interval per split, and what it cost.

How a table was made (command, versions, date) travels with it in `ResultTable.meta` and in the JSON form, but is not a
column: a table that is re-made on another day must differ only where a number does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_mass.errors import DataError
from hf_mass.evaluation.statistics import Interval
from hf_mass.store.markdown import markdown_table
from hf_mass.store.storage import replace_text

FORMAT_VERSION = 1
_ABSENT = "–"


@dataclass(frozen=True, slots=True)
class ResultRow:
    """What one method reached and what it cost.

    Args:
        method: Name of the method, unique in its table.
        accuracy: Interval per split; a split that was not run is left out.
        sampled_tokens: Tokens sampled per problem, auxiliary samples included; None where it was not measured.
        latency_s: Seconds per problem, adaptation included; None where it was not measured.
        extra: Further figures by name (an AUC, a parse rate); kept in the JSON form, not shown as columns.
    """

    method: str
    accuracy: Mapping[str, Interval]
    sampled_tokens: float | None = None
    latency_s: float | None = None
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ResultTable:
    """Rows over the same splits.

    Args:
        title: What was measured.
        splits: Names of the splits, in the order of the columns.
        rows: The methods, in the order in which they are shown.
        meta: How the table was made: command, versions, date, device. Values that JSON can hold.

    Raises:
        DataError: If there is no split, a name occurs twice, or a row has a split that the table does not have.
    """

    title: str
    splits: tuple[str, ...]
    rows: tuple[ResultRow, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Lists are welcome as arguments; a tuple keeps the table from changing behind a saved file.
        object.__setattr__(self, "splits", tuple(self.splits))
        object.__setattr__(self, "rows", tuple(self.rows))
        if not self.splits:
            raise DataError("ResultTable.splits is empty. Name at least one split.")
        for what, names in (("splits", self.splits), ("rows", tuple(row.method for row in self.rows))):
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(
                    f"ResultTable.{what}: {repeated} occur more than once. Give every entry a name of its own."
                )
        for row in self.rows:
            if unknown := sorted(set(row.accuracy) - set(self.splits)):
                raise DataError(
                    f"ResultTable.rows: {row.method!r} has results for {unknown}, but the splits are "
                    f"{list(self.splits)}. Add the split to the table or drop it from the row."
                )

    def __iter__(self) -> Iterator[ResultRow]:
        return iter(self.rows)

    def __getitem__(self, method: str) -> ResultRow:
        for row in self.rows:
            if row.method == method:
                return row
        raise DataError(f"ResultTable: no row {method!r}. The rows are {[row.method for row in self.rows]}.")

    def interval(self, method: str, split: str) -> Interval:
        """The accuracy of one method on one split.

        Raises:
            DataError: If there is no such row, or it was not run on that split.
        """
        row = self[method]
        if split not in row.accuracy:
            raise DataError(f"ResultTable: {method!r} has no result for split {split!r}. It has {list(row.accuracy)}.")
        return row.accuracy[split]

    def to_markdown(self) -> str:
        """The table in GitHub's markdown, without a title."""
        header, *body = self._cells()
        return markdown_table(header, body)

    def to_text(self) -> str:
        """The table for a terminal: title, aligned columns, no markup."""
        lines = self._cells()
        first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
        padded = []
        for name, *cells in lines:
            padded.append("  ".join([name.ljust(first), *map(str.rjust, cells, others)]))
        return "\n".join([self.title, padded[0], "-" * len(padded[0]), *padded[1:]])

    def to_json(self) -> str:
        """Everything, as JSON text; `from_json` reads it back."""
        return json.dumps({"format": FORMAT_VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ResultTable:
        """Read what `to_json` wrote.

        Raises:
            DataError: If the text is not JSON, was written by a newer version, or lacks a field.
        """
        try:
            record = json.loads(text)
            if (version := record["format"]) != FORMAT_VERSION:
                raise DataError(
                    f"ResultTable: format {version!r} is unknown; this version reads {FORMAT_VERSION}. "
                    "Re-make the table, or update the package."
                )
            rows = [
                ResultRow(**{**row, "accuracy": {k: Interval.from_dict(v) for k, v in row["accuracy"].items()}})
                for row in record["rows"]
            ]
            return cls(record["title"], tuple(record["splits"]), tuple(rows), record["meta"])
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"ResultTable: not a saved table ({error!r}). Give a file that `save` wrote.") from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the JSON form; an existing file is replaced only once the new one is complete.

        Returns:
            The path.
        """
        return replace_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ResultTable:
        """Read a file that `save` wrote.

        Raises:
            DataError: If the file does not hold a table.
        """
        return cls.from_json(Path(path).read_text(encoding="utf-8"))

    def _cells(self) -> list[list[str]]:
        lines = [["method", *self.splits, "n", "seeds", "tokens / problem", "s / problem"]]
        for row in self.rows:
            present = [row.accuracy[split] for split in self.splits if split in row.accuracy]
            accuracies = [str(row.accuracy.get(split, _ABSENT)) for split in self.splits]
            counts = [_join(interval.n for interval in present), _join(interval.seeds for interval in present)]
            tokens = _ABSENT if row.sampled_tokens is None else f"{row.sampled_tokens:.0f}"
            seconds = _ABSENT if row.latency_s is None else f"{row.latency_s:.3g}"
            lines.append([row.method, *accuracies, *counts, tokens, seconds])
        return lines


def _join(counts: Iterator[int]) -> str:
    """One number where the splits agree, else one per split: `600` or `600 / 450`."""
    values = list(map(str, counts))
    return " / ".join(values[:1] if len(set(values)) <= 1 else values) or _ABSENT
