"""Mathematical answers: what an answer says of its formulas counts, not the formulas alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hf_mass.tasks.math_verifier import MathVerifier
from hf_mass.tasks.task import Task

RIGHT = [
    ("5,6", "5 and 6"),
    ("5,6", "\\boxed{5} and \\boxed{6}"),
    ("\\{1,2\\}", "\\boxed{1} and \\boxed{2}"),
    ("1,2", "\\boxed{1}, \\boxed{2}"),
    ("1,2,3", "1, 2 and 3"),
    ("1,2,3", "1, 2, and 3"),
    ("(-\\infty,3)", "(-inf, 3)"),
    ("(-\\infty,3)", "(-infinity, 3)"),
    ("(-\\infty,3)", "(-oo, 3)"),
    ("(-\\infty, 3)", "(-\\inf, 3)"),
    ("[2,\\infty)", "[2, inf)"),
    ("73", "not 33 but 73"),
    ("73", "73, not 33"),
    ("73", "<answer>73</answer>"),
    ("73", "### Answer\n$73$"),
    ("x+1", "<think>$x$</think>$x+1$"),
    ("x+1", "```\nx+1\n```"),
    ("x+1", "The answer is $1+x$."),
    ("x-1,x+1", "x+1 and x-1"),
    ("\\sqrt{2},-\\sqrt{2}", "√2 and -√2"),
    ("3,-3", "x = 3 or x = -3"),
    ("x+1", "$y = x+1$"),
    ("\\text{not possible}", "not possible"),
    ("5", "$x = 5$"),
    ("x+y = 10", "y + x = 10"),
    ("x+y = 10", "x = 10 - y"),
    ("5\\text{ km}", "5000 m"),
    ("5\\text{ km}", "5"),
    ("\\$5.50", "550 cents"),
    ("3:30 \\text{ p.m.}", "3:30 PM"),
    ("(3,4)", "\\big(3,4\\big)"),
    ("(3,4)", "(x,y) = (3,4)"),
    ("1{,}234", "1\\,234"),
    ("5", "the answer is $5$, since $2+3=5$."),
    ("5", "\\text{The answer is } 5"),
    ("(-\\infty,2)\\cup(3,\\infty)", "(3,\\infty)\\cup(-\\infty,2)"),
    *(("\\frac{\\pi}{2}", text) for text in (r"\frac\pi2", r"\dfrac\pi{2}", r"\tfrac \pi 2", r"\frac{\pi}2")),
    *(("\\frac{2}{\\pi}", text) for text in (r"\frac2\pi", r"\frac{2}\pi")),
    ("\\frac{\\theta}{\\pi}", r"\frac\theta\pi"),
    ("\\frac{\\sqrt{2}}{2}", r"\frac{\sqrt2}2"),
    ("\\sqrt{2}", "**$\\sqrt{2}$**"),
    ("\\text{Friday}", "**Friday**"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", r"\begin{pmatrix}1\\[4pt]2\end{pmatrix}"),
    ("3+4i", "3+4\\mathrm{i}"),
    ("\\pm 3", "3, -3"),
    ("1{,}000{,}000", "1 000 000"),
    ("6.02 \\times 10^{23}", "6.02e23"),
    *(("\\frac{3}{2}, -1", text) for text in (r"\frac{3}{2} \text{ and } -1", r"x=\frac32 \text{ or } x=-1")),
    ("1, 2, 3", r"1, 2, \text{and } 3"),
    ("\\frac{1}{3}", r"0.\overline{3}"),
    ("0.1\\overline{6}", r"\frac16"),
    ("x \\in [-2,7]", r"-2 \le x \le 7"),
    (".0000672", "6.72 \\times 10^{-5}"),
    ("\\frac{4}{5}", "\\boxed{\\frac{8}{10} = \\frac{4}{5}}"),
    ("\\frac{4}{5}", "Final answer:\n\\[\n\\frac{4}{5}\n\\]"),
]
WRONG = [
    ("x+1", "it is not $x+1$"),
    ("x+1", "It isn't $x+1$"),
    ("x+1", "$x+1$ is wrong"),
    ("x+1", "the wrong answer is $x+1$"),
    ("x+1", "it is not x+1"),
    ("x+1", "not x+1"),
    ("5", "at least $5$"),
    ("5", "$5$ or more"),
    ("5", "more than $5$"),
    ("5", "\\boxed{5} or \\boxed{6}"),
    ("6", "\\boxed{5} or \\boxed{6}"),
    ("13", "12 or 13"),
    ("13", "12 and 13"),
    ("5", "twice $5$"),
    ("x+1", "neither $x+1$ nor x"),
    ("5", "Wrong answer: 5"),
    ("5", "it cannot be \\(5\\)"),
    ("x", "never x"),
    ("x+1", "x+1 is wrong"),
    ("x+1", "$x+1$ is not a solution"),
    ("5", "\\boxed{6} <think>5"),
    ("5", "5x"),
    ("5", "5 x"),
    ("(3,4)", "3 and 4"),
    ("10", "$2x = 10$"),
    ("10", "2x = 10"),
    ("10", "x + 3 = 10"),
    ("10", "\\boxed{x+3=10}"),
    ("4", "x=3, y=4"),
    ("4", "$x=3$, $y=4$"),
    ("x+1", "false: $x+1$"),
    ("5", "5 km/h plus"),
    ("(3,5)", "3 and 5"),
    ("x^2", "2^x"),
    ("x", "it is x-1"),
    ("x+y = 10", "10"),
    ("x+y = 10", "x + y = 11"),
    ("x+y = 10", "x + y"),
    ("5\\text{ km}", "5 m"),
    ("5\\text{ km}", "5\\text{ hours}"),
    ("36\\text{ cm}^2", "36\\text{ cm}"),
    ("90^\\circ", "90 radians"),
    ("5", "5\\text{ million}"),
    ("5", "5\\text{ or more}"),
    ("5", "5,5"),
    ("5", "\\text{none of }5"),
    ("5", "5 when x > 0 and 6 otherwise"),
    ("5", "$5$? No."),
    ("\\frac{3}{4}", "\\frac{3}{4"),
    ("\\frac{1}{3}", "\\frac{1}{3}\\cdot"),
    ("\\frac{1}{3}", "$\\frac13$ if $x=1$"),
    ("(3,4)", "3,4"),
    ("(3,4)", "\\{3,4\\}"),
    ("(1,-2)", "[1,-2]"),
    ("1,-2", "(1,-2)"),
    ("3:30 \\text{ p.m.}", "1/10"),
    ("3:30 \\text{ p.m.}", "3:30 a.m."),
    *(("\\frac{\\pi}{2}", text) for text in (r"\frac\pi20", r"\frac2\pi", r"\frac\pi3")),
    ("14", "\\le 14"),
    ("14", "\\boxed{< 14}"),
    ("14", "\\boxed{14}\\text{ is wrong}"),
    ("3", "\\pm 3"),
    ("\\frac{4}{5}", "\\frac{4}{5} = 0.9"),
    ("10", "\\frac{x}{2} = 10"),
    ("4", "\\sqrt{x} = 4"),
    ("0,5", "0.5"),
    ("(3,\\frac{\\pi}{2})", r"3, \frac{\pi}{2}"),
    ("\\frac{3}{2}, -1", r"(\frac{3}{2}, -1)"),
    ("\\frac{3}{2}, -1", r"[\frac{3}{2}, -1]"),
    ("42", r"42\ldots"),
    ("0.\\overline{3}", "0.3"),
    ("x \\in [-2,7]", "-2 < x < 7"),
    (".0000672", ".000067"),
    ("0", "0.0000001"),
]


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    made = MathVerifier(time_limit=60.0)
    yield made
    made.close()


@pytest.mark.parametrize(("gold", "text"), RIGHT)
def test_right_answers(verifier: MathVerifier, gold: str, text: str) -> None:
    assert verifier(Task("p", answer=gold), text) == 1.0


@pytest.mark.parametrize(("gold", "text"), WRONG)
def test_wrong_answers(verifier: MathVerifier, gold: str, text: str) -> None:
    assert verifier(Task("p", answer=gold), text) == 0.0
