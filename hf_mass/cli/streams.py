"""What is written to stdout and stderr, whatever a console can show; and warnings for people."""

from __future__ import annotations

import codecs
import json
import os
import sys
import warnings
from typing import Any, TextIO

from hf_mass.errors import DataWarning, ModelWarning

_PLAINER = str.maketrans({**dict.fromkeys("−–—", "-"), "…": "...", "→": "->", "±": "+-", "×": "x", "✓": "+", "✗": "x"})
"""Signs of this package's own for those that a console cannot show."""


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAINER)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


def open_what_is_closed() -> str | None:
    """Where a shell has closed stdin or stderr, make it an empty one: what is opened next would else be in its place.

    Returns:
        What is wrong, where stdout is closed: nobody would see what the command finds out.
    """
    stdout_is_closed = sys.stdout is None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, this one
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    return "hf-mass: stdout is closed. Leave it open, or send it to a file or /dev/null." if stdout_is_closed else None


def write_what_can_be_written() -> None:
    """From now on stdout and stderr write what their encoding lacks in plain signs or by its code, and do not fail."""
    codecs.register_error("hf_mass.plainer", _plainer)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not what a caller has put in its place
            stream.reconfigure(errors="hf_mass.plainer")


def json_text(value: Any) -> str:
    """A value as a line of JSON, with escapes where stdout could not write its letters."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return json.dumps(value, ensure_ascii=not codecs.lookup(encoding).name.startswith("utf"))


def shown_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning on stderr; those of this package for people, without the place in the code."""
    ours = issubclass(category, ModelWarning | DataWarning)
    sys.stderr.write(f"hf-mass: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno))
