"""Pretrain the small base for string rules from scratch and write it as an ordinary `from_pretrained` folder.

In the folder `examples`:

    python -m research.strings.pretrain --output ../hf_mass/assets/strings-base --minutes 45 --compile

How it is trained, stopped and resumed: `pretraining.py`.
"""

from __future__ import annotations

import random
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from paths import OUTPUTS
from research.pretraining import World, main
from research.strings.world import (
    FAMILIES,
    HELD_OUT,
    INPUT,
    OUTPUT,
    PAIR_END,
    Sizes,
    StringTask,
    curriculum,
    draw_task,
    token_count,
)

CHARACTERS = [*map(chr, range(32, 127)), "\n", "\t"]
MARKS = [PAIR_END, INPUT, OUTPUT]
SPECIAL = ["<pad>", "<bos>", "<unk>", *(f"<spare{i}>" for i in range(8))]


def build_tokenizer() -> PreTrainedTokenizerFast:
    r"""One token a character of printable ASCII, and one for each mark of the few-shot format "plain".

    "\n\n" ends an output (eos). The marks stand for themselves alone, so a text has the same ids whether it is read
    whole or in parts that end with marks. Any other character is "<unk>".
    """
    ids = {token: index for index, token in enumerate([*CHARACTERS, *MARKS, *SPECIAL])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in (INPUT, OUTPUT)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token=PAIR_END,
        unk_token="<unk>",
        additional_special_tokens=[token for token in SPECIAL if token.startswith("<spare")],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


@cache
def vocabulary(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Token → id, made once."""
    return dict(tokenizer.get_vocab())


class Strings(World[StringTask]):
    """String rules, in the few-shot format "plain"."""

    name = "string"
    families = FAMILIES
    held_out = HELD_OUT
    positions = 1024

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        return build_tokenizer()

    def draw(self, draw: random.Random, progress: float) -> StringTask:
        return draw_task(draw, curriculum(progress))

    def length(self, task: StringTask) -> int:
        return token_count(task.pairs)

    def row(
        self, task: StringTask, tokenizer: PreTrainedTokenizerFast, input_weight: float
    ) -> tuple[list[int], list[float]]:
        """Every output after the first demonstration's weighs 1 with its end; inputs and marks `input_weight`."""
        ids_of = vocabulary(tokenizer)
        row, weights = [ids_of["<bos>"]], [0.0]
        for number, (question, answer) in enumerate(task.pairs):
            shown, wanted = [INPUT, *question, OUTPUT, " "], [*answer, PAIR_END]
            row += [ids_of[token] for token in (*shown, *wanted)]
            weights += [input_weight] * len(shown) + [float(number > 0)] * len(wanted)
        return row, weights

    def family(self, task: StringTask) -> str:
        return task.family

    def validation_sets(self, per_family: int) -> dict[str, list[StringTask]]:
        """Every family at full size, at the first sizes, and composed; held-out ones six times as often."""
        sets: dict[str, list[StringTask]] = {}
        for name, sizes in (
            ("full", Sizes(composed=0.0)),
            ("small", curriculum(0.0)),
            ("composed", Sizes(composed=1.0)),
        ):
            for family in FAMILIES:
                split = "held_out" if family in HELD_OUT else "trained"
                draw = random.Random(f"string-validation-{name}-{family}")
                count = per_family * (6 if family in HELD_OUT else 1)
                tasks = sets.setdefault(f"{split}_{name}", [])
                tasks += [draw_task(draw, sizes, [family]) for _ in range(count)]
        return sets


if __name__ == "__main__":
    main(Strings(), __doc__, output=OUTPUTS / "strings-base", input_weight=0.1, learning_rate=4e-3)
