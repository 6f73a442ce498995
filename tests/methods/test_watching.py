"""Adaptation can be watched while it runs, and stopped by what watches: nothing of it stays in the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_fixtures import WORLD as world
from model_fixtures import conventions_config, conventions_model, equal_trees, snapshot
from ttt_fixtures import make_trainer, strip_task

from hf_mass.engine.events import Event, Loss
from hf_mass.engine.session import Session
from hf_mass.errors import Stopped
from hf_mass.lm.generation import Sampling, complete, watching


def test_generation_shows_every_token_up_to_each_rows_end() -> None:
    mass = conventions_model()
    tasks = world.tasks("validation", 3)
    prompts = [mass.encoder.generator_prompt_ids(task) for task in tasks]
    seen, limits = list[list[list[int]]](), list[int]()
    with watching(lambda rows, most: (seen.append(rows), limits.append(most))):  # type: ignore[func-returns-value]
        whole = complete(mass.model, mass.tokenizer, prompts, Sampling(6), [1, 2, 3])
    assert whole == complete(mass.model, mass.tokenizer, prompts, Sampling(6), [1, 2, 3])
    assert [len(rows[0]) for rows in seen][:2] == [1, 2] and seen[-1] == whole and set(limits) == {6}
    for rows in seen:
        assert all(full[: len(part)] == part for part, full in zip(rows, whole, strict=True))


def test_samples_are_seen_while_they_are_written() -> None:
    mass, seen = conventions_model(), []
    (task,) = world.tasks("validation", 1)
    with watching(lambda rows, most: seen.append(rows)):
        (samples,) = mass.generate_auxiliary([task], 4)
    assert [list(sample.token_ids) for sample in samples] == seen[-1]
    assert len(seen) >= 2 and len(seen[0]) == 4


def test_a_watcher_can_stop_sampling_and_the_model_is_as_before() -> None:
    mass = conventions_model(trained=True)
    before = snapshot(mass.model)
    (task,) = world.tasks("validation", 1)

    def stop(rows: list[list[int]], most: int) -> None:
        raise Stopped

    with pytest.raises(Stopped), watching(stop):
        mass.generate_auxiliary(task, 4)
    again, reference = mass.adapt(task, seed=1), conventions_model(trained=True).adapt(task, seed=1)
    assert equal_trees(again.adapted, reference.adapted)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(mass.model).items())


def test_losses_of_every_inner_step() -> None:
    mass = conventions_model(conventions_config(inner_steps=3, inner_learning_rate=1.0))
    (task,) = world.tasks("validation", 1)
    record = mass.adapt(task)
    assert record.sample_losses.shape == (4, 6)
    assert torch.equal(record.losses_before, record.sample_losses[0]) and torch.equal(
        record.losses_after, record.sample_losses[3]
    )
    usable = [sample.usable for sample in record.samples]
    means = record.sample_losses[:, usable].mean(1)
    assert (means[1:] < means[:-1]).all()


def test_training_steps_are_seen_with_their_losses(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    events: list[Event] = []
    session = Session(trainer.lm, trainer.method, on_event=events.append)
    records = session.adapt([strip_task("a", "444"), strip_task("b", "545")])
    losses = [event for event in events if isinstance(event, Loss)]
    assert [loss.step for loss in losses] == list(range(losses[0].steps))
    means = [(a + b) / 2 for a, b in zip(records[0].losses, records[1].losses, strict=True)]
    assert [loss.value for loss in losses] == pytest.approx(means)


def test_a_session_stops_between_training_steps_and_between_tokens(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    task, before = strip_task("a"), snapshot(trainer.model)
    (record,) = Session(trainer.lm, trainer.method).adapt([task])
    asked = iter([False, False, True])
    with pytest.raises(Stopped, match="stopped"):
        Session(trainer.lm, trainer.method, halt=lambda: next(asked)).adapt([task])
    with pytest.raises(Stopped, match=r"the time limit of 1e-09 s is reached; choose fewer"):
        Session(trainer.lm, trainer.method, time_limit=1e-9).answer([task], [record])
    answers, cost = Session(trainer.lm, trainer.method).answer([task], None)
    assert answers[0].text is not None and cost.sampled_tokens > 0
    assert all(torch.equal(value, before[name]) for name, value in snapshot(trainer.model).items())
