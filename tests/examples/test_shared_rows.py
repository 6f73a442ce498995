"""The benchmark of rows that share a sequence, on a tiny model that ships."""

from __future__ import annotations

import re

import pytest

from benchmarks.shared_rows import main


def test_both_ways_are_timed_and_agree(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--prompt", "24", "--answer", "4", "--samples", "4", "--repeats", "1"]
    main(["--model", "strings-base", "--dtype", "float32", *sizes])
    lines = capsys.readouterr().out.splitlines()
    found = [
        re.match(r"K = (\d), m = 4, 24 \+ 4 tokens: apart .* ratio [\d.]+; attributions differ by (\S+) ", x)
        for x in lines
    ]
    assert [match[1] for match in found if match] == ["1", "2"]
    assert all(float(match[2]) < 1e-4 for match in found if match)
