"""Arguments of the chat template, TRL's own setting, reach the prompts of both trainers."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from trainer_fixtures import chat_model, chat_tokenizer
from trainer_fixtures import make_trainer as make_meta_trainer

from hf_mass.errors import ConfigError
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.tasks.prompt_format import PromptFormat
from hf_mass.tasks.task import Task
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer
from hf_mass.training.ttt_config import TTTConfig
from hf_mass.training.ttt_trainer import TTTTrainer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}{{ mood }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant{{ mood }}>{% endif %}"
)


def test_few_shot_prompts(tmp_path: Path) -> None:
    def build(**kwargs: object) -> TTTTrainer:
        args = TTTConfig.preset(
            "text", output_dir=str(tmp_path), chat=True, report_to="none", chat_template_kwargs=kwargs
        )
        return TTTTrainer(chat_model(), args, processing_class=chat_tokenizer(TEMPLATE))

    trainer = build(mood=" calm")
    prompt = FewShotAnswers(trainer.lm, trainer.args.settings()).encoder.prompt(Task.from_pairs([("a", "b")], "c"))
    shown = "<user calm>a</user><assistant calm>b</assistant><user calm>c</user><assistant calm>"
    assert trainer.processing_class.decode(prompt) == shown
    with pytest.raises(
        ConfigError, match="chat_template_kwargs has 'temper', which the model's chat template does not use"
    ):
        build(temper="calm")


def test_prompts_of_mass(tmp_path: Path) -> None:
    options = {
        "model": chat_model(),
        "processing_class": chat_tokenizer(TEMPLATE),
        "train_dataset": [Task("1+1?", answer="2", conversational=True, id="sum")],
        "prompt_format": PromptFormat(),
        "peft_config": None,
    }
    settings = {"scorer_features": ["overlap"], "max_length": 512, "chat_template_kwargs": {"mood": " calm"}}
    trainer = make_meta_trainer(tmp_path, options=options, **settings)
    for mass in (trainer.mass, trainer.outer_loop.mass):
        prompt = trainer.processing_class.decode(mass.encoder.generator_prompt_ids(trainer.train_tasks[0]))
        assert prompt.startswith("<user calm>") and prompt.endswith("<assistant calm>")


@pytest.mark.parametrize("conversational", [True, False])
def test_the_generator_is_asked_by_the_tokens_that_answers_are(tmp_path: Path, conversational: bool) -> None:
    """The tokenizer itself would end a prompt, and take what reads as a special token in a problem for one."""
    tokenizer = chat_tokenizer(TEMPLATE)
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    problems = ["1+1?", f"what is {end[0]}?"]
    options = {
        "model": chat_model(),
        "processing_class": tokenizer,
        "train_dataset": [Task(text, answer="2", conversational=conversational) for text in problems],
        "prompt_format": PromptFormat(),
        "peft_config": None,
    }
    settings = {"scorer_features": ["overlap"], "max_length": 512, "chat_template_kwargs": {"mood": " calm"}}
    trainer = make_meta_trainer(tmp_path, options=options, **settings)
    ids, images, fields = trainer._tokenize_prompts(list(trainer.train_dataset["prompt"]))
    assert ids == [trainer.mass.encoder.generator_prompt_ids(task) for task in trainer.train_tasks]
    assert (images, fields) == (None, {}) and not any(end[1] in row for row in ids)
    assert problems[1] in tokenizer.decode(ids[1])
    by_trl, _, _ = super(MetaAdaptTrainer, trainer)._tokenize_prompts(list(trainer.train_dataset["prompt"]))
    assert ids[0] == (by_trl[0] if conversational else by_trl[0][:-1])  # an ordinary problem is read as TRL reads it
