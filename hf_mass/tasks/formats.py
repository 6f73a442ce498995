"""The prompt formats that come with the package, by name."""

from __future__ import annotations

from typing import Any

from hf_mass.tasks.prompt_format import (
    DEFAULT_GENERATOR,
    DEFAULT_SOLUTION,
    DEFAULT_SOLVER,
    ParsedSample,
    ParsedSolution,
    ParseFailure,
    PromptFormat,
)

__all__ = ["FORMATS", "ParseFailure", "ParsedSample", "ParsedSolution", "PromptFormat"]


def _few_shot_text(question: str, answer: str, **settings: Any) -> PromptFormat:
    """A format whose prompts are lists of solved examples, each of which is `question` and then `answer`."""
    prompt = "{demonstrations}" + question
    return PromptFormat(
        generator_template=prompt.partition("{question}")[0],
        solver_template=prompt.replace("{question}", "{problem}"),
        demonstration_template=question + answer,
        demonstration_separator="",
        demonstrations_header="",
        demonstrations_footer="",
        inner_template=prompt,
        demonstration_prompt_template=prompt,
        solution_format="{answer}",
        **settings,
    )


def _balanced(depth: int) -> str:
    """Pattern of LaTeX text whose braces are balanced to a nesting of `depth`; the re module has no recursion."""
    pattern = r"(?:[^{}\\]|\\.)*"
    for _ in range(depth):
        pattern = rf"(?:[^{{}}\\]|\\.|\{{{pattern}\}})*"
    return pattern


# The derivation of a MATH solution keeps its own \boxed, since cutting it out would leave broken LaTeX; its answer is
# the last \boxed. What `solution_format` appends is taken off again. A single line without \boxed is an answer alone.
_MATH_SOLUTION = (
    rf"(?s)\A(?=(?:(?P<box>.*\\boxed\s*\{{)|(?!.*\\boxed)(?=\s*+[^\n]*+\s*+\Z))(?P<answer>{_balanced(5)})(?(box)\}}|\Z))"
    rf"(?(box)(?P<rationale>.*?)(?:(?<!\s)\s*+Final answer: \$\\boxed\{{{_balanced(5)}\}}\$\s*+)?\Z)"
)

# One row of a grid per line; the digits of a row may be spaced. What is taken is never given back (*+, here as in the
# patterns below): no other share could match, and looking for one takes quadratic time.
_ROWS = r"[0-9][0-9 \t]*+(?:\n[ \t]*+[0-9][0-9 \t]*+)*+"

# An input or output of plain few-shot text: up to a blank line or the next label.
_PART = r"(?:(?!\n\n|\n(?:Input|Output):).)*"

FORMATS: dict[str, PromptFormat] = {
    "default": PromptFormat(),
    "gsm8k": PromptFormat(
        generator_template=DEFAULT_GENERATOR.replace("Here is a problem", "Here is a grade school math word problem"),
        demonstration_template="Problem: {question}\nAnswer: #### {answer}",
        # GSM8K's answers are one line, so a longer text without #### has none.
        solution_pattern=DEFAULT_SOLUTION.replace("(?!.*####).+", r"(?!.*####)[^\n]++(?=\s*\Z)"),
    ),
    "math": PromptFormat(
        generator_template=DEFAULT_GENERATOR.replace(
            "end it with #### and the final answer", r"put the final answer in \boxed{{}}"
        ).replace("#### the final answer", r"\boxed{{the final answer}}"),
        solver_template=DEFAULT_SOLVER.replace(
            "End with #### and the final answer", r"Put the final answer in \boxed{{}}"
        ),
        demonstration_template="Problem: {question}\nAnswer: $\\boxed{{{answer}}}$",
        solution_pattern=_MATH_SOLUTION,
        solution_format="{rationale}\n\nFinal answer: $\\boxed{{{answer}}}$",
    ),
    "grid": PromptFormat(
        generator_template=(
            "{demonstrations}Input:\n{problem}\n\nWrite one new input and its output by the same rule, in the same "
            "form.\n\nInput:\n"
        ),
        solver_template="{demonstrations}Input:\n{problem}\nOutput:\n",
        demonstration_template="Input:\n{question}\nOutput:\n{answer}",
        demonstrations_header="",
        sample_pattern=rf"(?i)\A\s*+(?:Input:)?\s*+(?P<question>(?:{_ROWS})?)\s*+Output:\s*+(?P<answer>(?:{_ROWS})?)",
        # A text that starts with the rows of the output may run on to further pairs, which are not read.
        solution_pattern=rf"(?s)\A\s*(?:(?!\s*[0-9])(?P<rationale>.*?)Output:\s*)?(?P<answer>{_ROWS})",
        solution_format="{answer}",
    ),
    # What a base pretrained on few-shot grids continues with a demonstration of its own. A ";" ends its outputs, so it
    # should be the tokenizer's end of sequence; the tokens are those of the few-shot format "compact".
    "compact_grid": _few_shot_text(
        "{question}>",
        "{answer};",
        sample_pattern=rf"\A\s*+(?P<question>(?:{_ROWS})?)\s*+>\s*+(?P<answer>(?:{_ROWS})?)\s*+(?:;|\Z)",
        solution_pattern=rf"\A\s*+(?P<answer>{_ROWS})\s*+(?:;|\Z)",
        grid_form="compact",
    ),
    # The text of the few-shot format "plain". A blank line ends an output, so it should be the tokenizer's end of
    # sequence; and since a prompt ends in a space, the tokenizer should be one that does not join it to the next word.
    "plain": _few_shot_text(
        "Input: {question}\nOutput: ",
        "{answer}\n\n",
        sample_pattern=rf"(?s)\A(?:Input:)?(?P<question>{_PART})\nOutput:(?P<answer>{_PART})",
        solution_pattern=rf"(?s)\A(?P<answer>{_PART})",
    ),
}
