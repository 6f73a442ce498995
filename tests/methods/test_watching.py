"""Adaptation can be watched while it runs, and stopped by what watches: nothing of it stays in the model."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import WORLD as world
from model_fixtures import conventions_config, conventions_model, equal_trees, snapshot
from ttt_fixtures import make_trainer, strip_task

from hf_mass.lm.generation import Sampling, complete


class Stopped(Exception):
    """Raised by a watcher."""


def test_generation_shows_every_token_up_to_each_rows_end() -> None:
    mass = conventions_model()
    tasks = world.tasks("validation", 3)
    prompts = [mass.encoder.generator_prompt_ids(task) for task in tasks]
    seen: list[list[list[int]]] = []
    whole = complete(mass.model, mass.tokenizer, prompts, Sampling(6), [1, 2, 3], watch=seen.append)
    assert whole == complete(mass.model, mass.tokenizer, prompts, Sampling(6), [1, 2, 3])
    assert [len(rows[0]) for rows in seen][:2] == [1, 2] and seen[-1] == whole
    for rows in seen:
        assert all(full[: len(part)] == part for part, full in zip(rows, whole, strict=True))


def test_samples_are_seen_while_they_are_written() -> None:
    mass, seen = conventions_model(), []
    (task,) = world.tasks("validation", 1)
    (samples,) = mass.generate_auxiliary([task], 4, watch=seen.append)
    assert [list(sample.token_ids) for sample in samples] == seen[-1]
    assert len(seen) >= 2 and len(seen[0]) == 4


def test_a_watcher_can_stop_sampling_and_the_model_is_as_before() -> None:
    mass = conventions_model(trained=True)
    before = snapshot(mass.model)
    (task,) = world.tasks("validation", 1)

    def stop(rows: list[list[int]]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        mass.generate_auxiliary(task, 4, watch=stop)
    again, reference = mass.adapt(task, seed=1), conventions_model(trained=True).adapt(task, seed=1)
    assert equal_trees(again.adapted, reference.adapted)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(mass.model).items())


def test_losses_of_every_inner_step() -> None:
    mass = conventions_model(conventions_config(inner_steps=3, inner_learning_rate=1.0))
    (task,) = world.tasks("validation", 1)
    record = mass.adapt(task)
    assert record.losses.shape == (4, 6)
    assert torch.equal(record.losses_before, record.losses[0]) and torch.equal(record.losses_after, record.losses[3])
    usable = [sample.usable for sample in record.samples]
    means = record.losses[:, usable].mean(1)
    assert (means[1:] < means[:-1]).all()


def test_training_steps_are_seen_with_their_losses(tmp_path) -> None:
    trainer = make_trainer(tmp_path)
    seen: list[tuple[int, int, list[float]]] = []
    tasks = [strip_task("a", "444"), strip_task("b", "545")]
    records = trainer.few_shot.adapt(tasks, on_step=lambda *args: seen.append(args))
    assert [step for step, _, _ in seen] == list(range(seen[0][1]))
    assert [losses[0] for _, _, losses in seen] == list(records[0].losses)
    assert [losses[1] for _, _, losses in seen] == list(records[1].losses)


def test_a_watcher_can_stop_training_and_answering(tmp_path) -> None:
    trainer = make_trainer(tmp_path)
    task, before = strip_task("a"), snapshot(trainer.model)

    def stop(*args: object) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        trainer.few_shot.adapt([task], on_step=stop)
    trainer.few_shot.watch = stop
    with pytest.raises(Stopped):
        trainer.few_shot.predict([task], trainer.few_shot.adapt([task]))
    trainer.few_shot.watch = None
    assert trainer.few_shot.predict([task])[0][0].answer is not None
    assert all(torch.equal(value, before[name]) for name, value in snapshot(trainer.model).items())
