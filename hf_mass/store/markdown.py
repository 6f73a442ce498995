"""Tables in GitHub's Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]], text_columns: int = 1) -> str:
    """A table whose cells stay in their columns, whatever they hold: bars are escaped, line breaks become spaces.

    Args:
        header: One cell a column.
        rows: As many cells each.
        text_columns: This many columns are set to the left; those after them hold numbers and are set to the right.
    """
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join(_line(cells) for cells in (header, rule, *rows))


def _line(cells: Sequence[object]) -> str:
    texts = [" ".join(str(cell).replace("|", "\\|").splitlines()) for cell in cells]
    return "|" + "|".join(f" {text} " if text else " " for text in texts) + "|"
