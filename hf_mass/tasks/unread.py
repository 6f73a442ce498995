"""Columns of a file that nobody reads: what may be part of a question is told, not lost in silence."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hf_mass.errors import DataWarning
from hf_mass.tasks.task import INSTRUCTION

_ABOUT = (
    "ids? idx index uid uuid guid row no nr # split source domain category subject level difficulty lang language url "
    "license version meta metadata timestamp created_at updated_at file file_?name tags? author annotator"
)
"""Columns about a row rather than of it, alone or behind another word ("task_id")."""
_IS_ABOUT = re.compile(rf"(?:.*[_ -])?(?:{'|'.join(_ABOUT.split())})|unnamed: \d+|", re.IGNORECASE)


def is_about(column: str) -> bool:
    """Whether a column says something about a row, such as its number, rather than of it."""
    return _IS_ABOUT.fullmatch(column.strip()) is not None


def tell_unread(rows: Iterable[Mapping[str, Any]], read: Collection[str], where: str) -> None:
    """Warns of columns with values that are not read, once for all rows; not of those that tell rows apart.

    Args:
        rows: The rows; columns by the names that `read` has.
        read: The columns that are read; "instruction" is, too.
        where: What errors call the file.
    """
    filled = {column: None for row in rows for column, value in row.items() if value not in (None, "", [])}
    unread = [each for each in filled if each not in {*read, INSTRUCTION} and not is_about(each)]
    used = [name for name in read if name in filled]
    if unread and used:
        names, known = (", ".join(map(repr, some))[:300] for some in (unread, used))
        warnings.warn(
            f"{where}: columns that are not read: {names}; read: {known}. What a question needs must stand in its own "
            "column. To silence this, name the columns that are meant.",
            DataWarning,
            stacklevel=4,
        )
