"""Tables in Markdown: every cell in its column, whatever it holds."""

from __future__ import annotations

from hf_mass.store.markdown import markdown_table


def test_text_to_the_left_and_numbers_to_the_right() -> None:
    assert markdown_table(("", "n"), [("a", 1), ("b", "–")]).splitlines() == [
        *("| | n |", "| --- | ---: |", "| a | 1 |", "| b | – |")
    ]
    assert markdown_table(("a", "b"), [], text_columns=2) == "| a | b |\n| --- | --- |"


def test_bars_and_line_breaks_stay_in_their_cell() -> None:
    table = markdown_table(("x|y", "n"), [("one\ntwo\r\nthree|", "\n")])
    assert table.splitlines() == ["| x\\|y | n |", "| --- | ---: |", "| one two three\\| | |"]
