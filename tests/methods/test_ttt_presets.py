"""`TTT_PRESETS`: what each comes to."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hf_mass.methods.ttt_settings import TTTSettings
from hf_mass.tasks.grid_transformations import Identity
from hf_mass.tasks.grids import as_grid, grid_text
from hf_mass.tasks.leave_one_out import training_examples
from hf_mass.tasks.task import Demonstration, Task

NEUTRAL: dict[str, Any] = {
    "learning_rate": 2e-3,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.0,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "adapters": "per_task",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_target_modules": "all-linear",
    "chat": False,
    "loss_on": "demonstrations",
    "leave_two_out": True,
    "direct": False,
    "random_shift": 0,
    "keep_background": True,
    "recolour_to_unused": False,
    "reorder_recoloured": False,
    "max_examples": 40,
    "max_length": None,
    "single_demonstration": "direct",
    "predict_samples": 1,
    "predict_temperature": 0.0,
    "predict_batch_size": 64,
    "vote_within": 3,
}
TEXTS: dict[str, Any] = {
    **NEUTRAL,
    "few_shot_format": "plain",
    "permutations": 4,
    "transformations": ("none",),
    "colour_permutations": 0,
    "max_grid_side": 30,
    "predict_transformations": ("none",),
    "predict_recolour": False,
    "predict_length_factor": 3.0,
    "vote": "flat",
}
OWN: dict[str, dict[str, Any]] = {
    "grids": {
        **NEUTRAL,
        "few_shot_format": "compact",
        "permutations": 1,
        "transformations": ("geometric",),
        "colour_permutations": 1,
        "max_grid_side": 128,
        "max_completion_length": 256,
        "predict_transformations": ("inference",),
        "predict_permutations": 2,
        "predict_recolour": True,
        "predict_length_factor": 2.0,
        "vote": "hierarchical",
    },
    "strings": {**TEXTS, "max_completion_length": 128, "predict_permutations": 4},
    "text": {
        **TEXTS,
        "max_examples": 20,
        "learning_rate": 5e-4,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "max_completion_length": 512,
        "predict_permutations": 1,
    },
}
"""Presets of this package → all that they come to, whatever the defaults are."""


@pytest.mark.parametrize("name", OWN)
def test_the_packages_own_presets_stay_what_their_results_were_made_with(name: str) -> None:
    assert vars(TTTSettings.preset(name)) == OWN[name]


# -- the published settings --------------------------------------------------------------------------------------------

MARC = "github.com/ekinakyurek/marc at 95b3348"
MARC_TORCHTUNE = "github.com/ekinakyurek/torchtune at efd85e0"
FEWSHOT = "github.com/adamzweiger/Fewshot-TTT at ad40084"
FEWSHOT_TORCHTUNE = "github.com/adamzweiger/torchtune at 2098843"
PAPER = "arXiv 2411.07279v2"
MLP = ("gate_proj", "up_proj", "down_proj")

ARC: list[tuple[str, Any, str, str]] = [
    ("learning_rate", 5e-5, MARC, "README.md:66"),
    ("num_train_epochs", 2, MARC, "README.md:65"),
    ("per_device_train_batch_size", 2, MARC, "README.md:64; test_time_train.py:120, no accumulation"),
    ("lr_scheduler_type", "cosine", MARC, "configs/ttt/8B_lora_single_device.yaml:70"),
    ("warmup_steps", 0.1, MARC, "test_time_train.py:265"),
    ("weight_decay", 0.01, MARC, "configs/ttt/8B_lora_single_device.yaml:66; test_time_train.py:131"),
    ("adam_beta1", 0.9, MARC, "configs/ttt/8B_lora_single_device.yaml:64, the default of torch.optim.AdamW"),
    ("adam_beta2", 0.999, MARC, "likewise"),
    ("adam_epsilon", 1e-8, MARC, "likewise"),
    ("max_grad_norm", None, MARC_TORCHTUNE, "recipes/lora_finetune_single_device.py: clip_grad_norm, which is not set"),
    ("adapters", "per_task", MARC, "test_time_train.py:279 and 359, from the same start for each task"),
    ("lora_r", 128, MARC, "README.md:67"),
    ("lora_alpha", 16, MARC, "README.md:68"),
    ("lora_dropout", 0.0, MARC, "configs/ttt/8B_lora_single_device.yaml:27"),
    ("lora_target_modules", ("q_proj", "v_proj", *MLP), MARC, "configs/ttt/8B_lora_single_device.yaml:22 to 24"),
    ("few_shot_format", "arc", MARC, "test_time_train.py:171 to 175: arrays, ' -> ' and '#'"),
    ("loss_on", "demonstrations", MARC, "configs/ttt/8B_lora_single_device.yaml:56; test_time_train.py:113"),
    ("direct", False, MARC, "ttt/preprocess.py:122 to 133"),
    ("leave_two_out", True, MARC, "ttt/preprocess.py:204 to 213"),
    ("permutations", 1, MARC, "ttt/preprocess.py:136 to 144, in the order of the task"),
    ("transformations", ("paper",), MARC, "ttt/preprocess.py:34 to 101, 22 of the 23"),
    ("random_shift", 3, MARC, "ttt/preprocess.py:46; arclib/augmenters.py:541 to 542"),
    ("colour_permutations", 1, MARC, "test_time_train.py:115; ttt/preprocess.py:148"),
    ("keep_background", True, MARC, "arclib/augmenters.py:137 and 145"),
    ("recolour_to_unused", True, MARC, "arclib/augmenters.py:138 to 163"),
    ("reorder_recoloured", True, MARC, "ttt/preprocess.py:154"),
    ("max_examples", 250, MARC, "test_time_train.py:297; ttt/preprocess.py:209 to 216"),
    ("max_grid_side", 30, MARC, "ttt/preprocess.py:140"),
    ("max_length", 8191, MARC, "ttt/preprocess.py:184, fewer than 8192 tokens"),
    ("max_completion_length", 8192, MARC, "inference/engine.py:15, what the prompt leaves of 8192 tokens"),
    ("predict_transformations", ("inference",), MARC, "inference/preprocess.py:46"),
    ("predict_permutations", 2, PAPER, "section on augmented inference; predict.py:98"),
    ("predict_recolour", False, MARC, "inference/preprocess.py:46 to 58"),
    ("predict_samples", 1, MARC, "README.md:108"),
    ("predict_temperature", 0.0, MARC, "README.md:107"),
    ("predict_length_factor", None, MARC, "inference/engine.py:15"),
    ("vote", "hierarchical", PAPER, "section on voting"),
    ("vote_within", 3, MARC, "arclib/voting.py:37 to 69"),
]
"""Setting, published value, where, and file and line there."""
ARC_DIFFERS = {
    "the output layer": "no LoRA on it, as README and configs say; README's command line turns it on all the same, "
    "since argparse reads the text 'False' as true there, and a tied output layer cannot have one of its own",
    "warm-up": "step k of w has the share (k + 1) / (w + 1) and w is rounded up; there k / w, whose first step is "
    "lost, and w is rounded down",
    "the last batch": "of an epoch is kept where it is not full, and dropped there",
    "precision": "LoRA and optimizer in float32; there in bfloat16, with the fused kernel of AdamW",
    "shifts": "a grid with a side of 3 is shifted by 3 = 0 as well; there a shift is below the side",
    "what fills up": "examples that lack two demonstrations are drawn at random; there the first of an unordered set",
    "prompt": "instruction and chat template are not those; demonstrations and query are not split into messages",
    "views": "every transformation has two orders of all demonstrations, as the paper says; the code asks without a "
    "transformation for each left-out demonstration in three orders, and under each transformation once",
    "vote": "between the transformations, as the paper says; the code has all predictions as one more voter",
    "max_completion_length": "what the model's context leaves, not what 8192 tokens leave",
}
"""What is another way than published, and how."""

BBH: list[tuple[str, Any, str, str]] = [
    ("learning_rate", 1e-4, FEWSHOT, "scripts/ttt_sweep.sh:37"),
    ("num_train_epochs", 1, FEWSHOT, "scripts/ttt_sweep.sh:37"),
    ("per_device_train_batch_size", 5, FEWSHOT, "scripts/ttt_sweep.sh:37; src/methods/ttt.py:211, no accumulation"),
    ("lr_scheduler_type", "cosine", FEWSHOT, "src/methods/ttt.py:199"),
    ("warmup_steps", 0.0, FEWSHOT, "src/methods/ttt.py:149, the whole part of a tenth of 8 steps"),
    ("weight_decay", 0.01, FEWSHOT, "src/methods/ttt.py:194, the default of torch.optim.AdamW"),
    ("adam_beta1", 0.9, FEWSHOT, "likewise"),
    ("adam_beta2", 0.999, FEWSHOT, "likewise"),
    ("adam_epsilon", 1e-8, FEWSHOT, "src/methods/ttt.py:196"),
    (
        "max_grad_norm",
        None,
        FEWSHOT_TORCHTUNE,
        "recipes/lora_finetune_single_device.py: clip_grad_norm, which is not set",
    ),
    ("adapters", "per_task", FEWSHOT, "src/methods/ttt.py:377 to 414"),
    ("lora_r", 64, FEWSHOT, "scripts/ttt_sweep.sh:37"),
    ("lora_alpha", 64, FEWSHOT, "scripts/ttt_sweep.sh:37"),
    ("lora_dropout", 0.05, FEWSHOT, "scripts/ttt_sweep.sh:23"),
    ("lora_target_modules", ("q_proj", "v_proj", "o_proj", *MLP), FEWSHOT, "src/methods/ttt.py:166 to 168"),
    ("few_shot_format", "questions", FEWSHOT, "src/methods/ttt.py:71; src/utils.py:58"),
    ("chat", False, FEWSHOT, "src/utils.py:58, plain text"),
    ("loss_on", "outputs", FEWSHOT, "scripts/ttt_sweep.sh:28; torchtune/datasets/_masked_inputs_text_completion.py"),
    ("direct", False, FEWSHOT, "src/methods/ttt.py:60 to 73"),
    ("leave_two_out", False, FEWSHOT, "src/methods/ttt.py:62, all demonstrations in each sequence"),
    ("permutations", 40, FEWSHOT, "src/methods/ttt.py:60 to 64"),
    ("max_examples", 40, FEWSHOT, "scripts/ttt_sweep.sh:37"),
    ("transformations", ("none",), FEWSHOT, "src/methods/ttt.py:60 to 73, of texts there are none"),
    ("random_shift", 0, FEWSHOT, "likewise"),
    ("colour_permutations", 0, FEWSHOT, "likewise"),
    ("max_length", None, FEWSHOT, "src/methods/ttt.py:155"),
    ("max_completion_length", 50, FEWSHOT, "src/tasks.py:162, the longest; each task's is in BBH_TASKS"),
    ("predict_transformations", ("none",), FEWSHOT, "src/methods/ttt.py:498 to 511"),
    ("predict_permutations", 1, FEWSHOT, "scripts/ttt_sweep.sh:37, no majority vote"),
    ("predict_samples", 1, FEWSHOT, "src/utils.py:50 to 54"),
    ("predict_temperature", 0.0, FEWSHOT, "src/utils.py:51"),
    ("predict_length_factor", None, FEWSHOT, "src/utils.py:52"),
    ("vote", "flat", FEWSHOT, "of one answer, any vote is the answer"),
]
BBH_DIFFERS = {
    "orders": "forty different ones of 400, ten of which leave the other demonstrations in their order; there forty "
    "drawn anew each time",
    "the asked order": "the one in which the demonstrations were drawn; there another random one",
    "loss": "on an answer and the empty line after it; there on the answer and one line break",
    "dropout": "masks that are a function of seed, step and place; the share is the same",
    "precision": "LoRA and optimizer in float32, there in bfloat16; no optimizer in the backward pass",
    "instructions": "this package's own words (hf_mass/tasks/bbh.py)",
}

OF_NO_MATTER = {
    "arc": {"chat", "single_demonstration", "predict_batch_size"},
    "bbh": {
        *("keep_background", "recolour_to_unused", "reorder_recoloured", "max_grid_side", "predict_recolour"),
        *("single_demonstration", "predict_batch_size", "vote_within"),
    },
}
"""Settings that are no part of the published method, or that have nothing to do here."""


@pytest.mark.parametrize(("name", "published"), [("arc", ARC), ("bbh", BBH)])
def test_the_published_presets_are_the_published_settings(
    name: str, published: list[tuple[str, Any, str, str]]
) -> None:
    values = vars(TTTSettings.preset(name))
    listed = [setting for setting, *_ in published]
    assert len(set(listed)) == len(listed) and {*listed, *OF_NO_MATTER[name]} == values.keys()
    assert {setting: tuple(v) if isinstance(v := values[setting], list) else v for setting in listed} == {
        setting: value for setting, value, *_ in published
    }
    assert all(source.startswith(("github.com/", "arXiv ")) and place for _, _, source, place in published)
    assert all(ARC_DIFFERS.values()) and all(BBH_DIFFERS.values())


def _twice(x: Any) -> Any:
    return np.kron(x, np.ones((2, 2), int))


AUGMENTERS: list[Callable[[Any], Any]] = [
    lambda x: np.rot90(x, 1),
    lambda x: np.rot90(x, 3),
    lambda x: np.rot90(x, 2),
    np.flipud,
    np.fliplr,
    lambda x: np.vstack([np.flipud(x), x]),
    lambda x: np.hstack([np.fliplr(x), x]),
    lambda x: np.vstack([x, np.flipud(x)]),
    lambda x: np.hstack([x, np.fliplr(x)]),
    np.transpose,
    _twice,
    lambda x: np.repeat(x, 2, axis=0),
    lambda x: np.repeat(x, 2, axis=1),
    lambda x: _twice(np.rot90(x, 1)),
    lambda x: _twice(np.rot90(x, 3)),
    lambda x: _twice(np.rot90(x, 2)),
    lambda x: _twice(np.flipud(x)),
    lambda x: _twice(np.fliplr(x)),
    lambda x: _twice(np.transpose(x)),
    lambda x: np.tile(x, (2, 1)),
    lambda x: np.tile(x, (1, 2)),
    lambda x: np.tile(x, (2, 2)),
]
"""What ttt/preprocess.py:34 to 101 lists, in that order, but for the random shift; each on inputs and outputs alike."""


def test_the_augmenters_of_arc_are_the_published_ones() -> None:
    sided = TTTSettings.preset("arc").data().sided_transformations
    assert {side for _, side in sided} == {"both"} and isinstance(sided[0][0], Identity) and len(sided) == 1 + 22
    cells = np.arange(6).reshape(2, 3)
    images = [each.apply(as_grid(cells.tolist())) for each, _ in sided[1:]]
    assert len(set(images)) == 22 == len(AUGMENTERS)
    assert set(images) == {as_grid(change(cells).tolist()) for change in AUGMENTERS}


def test_the_examples_of_arc_are_as_many_as_published() -> None:
    """Of three demonstrations: three left out, 23 augmenters and none, each recoloured once; the rest lacks two."""
    rng = random.Random(0)
    drawn = [[[rng.randrange(5) for _ in range(5)] for _ in range(5)] for _ in range(6)]
    pairs = tuple(
        Demonstration(grid_text(as_grid(a)), grid_text(as_grid(b))) for a, b in zip(drawn[:3], drawn[3:], strict=True)
    )
    examples = training_examples(Task("0", pairs), TTTSettings.preset("arc").data(), 3, lambda example: 1)
    assert Counter(len(one.demonstrations) for one in examples) == {2: 3 * 24 * 2, 1: 250 - 3 * 24 * 2}
    recoloured = [one for one in examples if "colours" in one.origin and len(one.demonstrations) == 2]
    assert len(recoloured) == 3 * 24
    for one in recoloured:  # four colours of nine are used, besides the background
        shown = set("".join(d.question + d.answer for d in (*one.demonstrations, one.query))) - set(" \n0")
        assert len(shown) == 4 and not shown & set("1234")


def test_the_examples_of_big_bench_hard_are_forty_orders_of_all_demonstrations() -> None:
    pairs = tuple(Demonstration(f"question {n}", f"answer {n}") for n in range(10))
    examples = training_examples(Task("query", pairs), TTTSettings.preset("bbh").data())
    orders = {(*one.demonstrations, one.query) for one in examples}
    assert len(orders) == 40 and all(set(order) == set(pairs) for order in orders)
    in_order = [order for order in orders if list(order[:-1]) == sorted(order[:-1], key=pairs.index)]
    assert len(in_order) < 5
