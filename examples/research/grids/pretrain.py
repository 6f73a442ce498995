"""Pretrain the small base for strips and grids from scratch and write it as an ordinary `from_pretrained` folder.

In the folder `examples`:

    python -m research.grids.pretrain --output ../hf_mass/assets/grids-base --minutes 75 --learning_rate 4e-3 --compile

How it is trained, stopped and resumed: `pretraining.py`.
"""

from __future__ import annotations

import random
from collections import defaultdict

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from paths import OUTPUTS
from research.grids.world import (
    FAMILIES,
    HELD_OUT,
    PAIR_END,
    PAIR_SEPARATOR,
    ROW_END,
    GridTask,
    Sizes,
    curriculum,
    draw_task,
    render_task,
)
from research.pretraining import World, main

VOCABULARY = [*"0123456789", ROW_END, PAIR_SEPARATOR, PAIR_END, "<pad>", "<bos>", "<unk>"]
SPARE = [f"<spare{i}>" for i in range(8)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; a digit's id is its colour; spaces are dropped; ";" ends an output (eos)."""
    ids = {word: index for index, word in enumerate([*VOCABULARY, *SPARE])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token=PAIR_END,
        unk_token="<unk>",
        additional_special_tokens=SPARE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


class Grids(World[GridTask]):
    """Strips and grids, in the few-shot format "compact"."""

    name = "grid"
    families = tuple(FAMILIES)
    held_out = HELD_OUT

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        return build_tokenizer()

    def draw(self, draw: random.Random, progress: float) -> GridTask:
        return draw_task(draw, curriculum(progress))

    def length(self, task: GridTask) -> int:
        return len(render_task(task.pairs)) + 1

    def row(
        self, task: GridTask, tokenizer: PreTrainedTokenizerFast, input_weight: float
    ) -> tuple[list[int], list[float]]:
        """Every output after the first demonstration's weighs 1 with the ";" that ends it, the first output 0."""
        ids_of = tokenizer.get_vocab()
        row, weights = [ids_of["<bos>"]], [0.0]
        pair, output = 0, False
        for character in render_task(task.pairs):
            row.append(ids_of[character])
            weights.append(float(pair > 0) if output else input_weight)
            if character == PAIR_SEPARATOR:
                output = True
            elif character == PAIR_END:
                pair, output = pair + 1, False
        return row, weights

    def family(self, task: GridTask) -> str:
        return task.family

    def validation_sets(self, per_family: int) -> dict[str, list[GridTask]]:
        """Every family at the final sizes, and at the first of the curriculum; held-out ones six times as often."""
        sets: dict[str, list[GridTask]] = defaultdict(list)
        for size_name, sizes in (("full", Sizes(composed=0.0)), ("small", curriculum(0.0))):
            for family, (dimension, _) in FAMILIES.items():
                split = "held_out" if family in HELD_OUT else "trained"
                draw = random.Random(f"grid-validation-{size_name}-{family}")
                for _ in range(per_family * (6 if family in HELD_OUT else 1)):
                    sets[f"{split}_{dimension}d_{size_name}"].append(draw_task(draw, sizes, [family]))
        return dict(sets)


if __name__ == "__main__":
    main(Grids(), __doc__, output=OUTPUTS / "grids-base")
