"""`TTTTrainer`: test-time training on few-shot tasks (arXiv 2411.07279) on TRL's GRPO machinery.

"sft" trains many tasks side by side in the engine that MASS adapts with. "grpo" hands each task's left-out
demonstrations (or, unlabelled, its own query) to TRL's training loop. Either way every task starts from the same saved
state, and nothing of it stays in the model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, overload

import torch
from accelerate.utils import gather_object, set_seed
from datasets import Dataset
from peft import PeftConfig, PeftModel
from rich.progress import track
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
)

from hf_mass.core.trees import Tree, tree_map
from hf_mass.engine.session import Session, passes
from hf_mass.errors import ConfigError, DataError, VerifierError
from hf_mass.lm.binding import clear_target_errors, deterministic, require_plain_lora
from hf_mass.lm.few_shot_encoding import tokens_up_to
from hf_mass.lm.fingerprint import base_digest, lora_digest
from hf_mass.lm.language_model import LanguageModel, lora_config
from hf_mass.lm.prefix import require_no_state
from hf_mass.lm.random_state import RandomState, host_random_state
from hf_mass.methods.base import Adaptation
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.methods.guard import Guard
from hf_mass.methods.ttt import TTT
from hf_mass.store.shipped import resolve_shipped
from hf_mass.tasks.answers import mean_scores, try_scoring
from hf_mass.tasks.checks import shown
from hf_mass.tasks.task import Task
from hf_mass.training.publishing_trainer import require_parts
from hf_mass.training.reinforcement import ReinforcedPrompt, Reinforcement, ttt_reward
from hf_mass.training.task_data import require_tasks
from hf_mass.training.ttt_adapters import AdapterTrainer
from hf_mass.training.ttt_config import TTTConfig
from hf_mass.training.ttt_results import ResultStore, TaskResult, tasks_digest

logger = logging.getLogger(__name__)


class TTTTrainer(AdapterTrainer):
    """Trains a LoRA for each few-shot task on the task's own demonstrations, and answers the task with it.

    Args:
        model: Hub id, folder, `PreTrainedModel`, or `PeftModel` whose "default" adapter each task starts from.
        args: Settings; `TTTConfig.preset` gives those that go by a name.
        train_dataset: Tasks that `train` adapts to.
        eval_dataset: Tasks that `evaluate` answers.
        processing_class: Tokenizer; by default the model's.
        peft_config: The adapter; by default LoRA as `args` say.
        callbacks: As in TRL; called in "grpo" runs.

    Raises:
        ConfigError: If a setting or LoRA targets are wrong.
        DataError: If something other than tasks is given.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "hf_mass", "ttt"]
    _name = "TTT"
    args: TTTConfig
    control: TrainerControl

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: TTTConfig | None = None,
        train_dataset: Sequence[Task] | None = None,
        eval_dataset: Sequence[Task] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        require_parts("TTTTrainer", model, args, TTTConfig, peft_config)
        args = args or TTTConfig(output_dir="outputs/ttt")
        self.train_tasks = [] if train_dataset is None else require_tasks(train_dataset, "TTTTrainer.train_dataset")
        self.eval_tasks = [] if eval_dataset is None else require_tasks(eval_dataset, "TTTTrainer.eval_dataset")
        model = str(resolve_shipped(model)) if isinstance(model, str | Path) else model
        if not isinstance(model, PeftModel) and peft_config is None:
            peft_config = lora_config(args.settings().lora)
        given = model.peft_config.get("default") if isinstance(model, PeftModel) else peft_config
        if given is not None:
            require_plain_lora("peft_config", given)
        self._prompts: list[ReinforcedPrompt] = []
        self.trained: list[Adaptation] = []
        with clear_target_errors("TTTConfig.lora_target_modules", peft_config):
            super().__init__(
                model=model,
                reward_funcs=[self._ttt_reward],
                args=args,
                train_dataset=Dataset.from_dict({"prompt": []}),  # each task of "grpo" brings its own
                processing_class=processing_class,
                peft_config=peft_config,
                callbacks=callbacks,
            )
        for callback in (ProgressCallback, PrinterCallback):  # one bar over tasks instead of one for each
            self.remove_callback(callback)
        kwargs: Any = args.chat_template_kwargs or {}
        self.lm = LanguageModel(
            self.model, self._tokenizer, str(self.model.config.name_or_path), chat_template_kwargs=kwargs
        )
        self.method = Guard(TTT(args.settings())) if args.guard else TTT(args.settings())
        if args.objective == "grpo":
            require_no_state(self.model)
            if self._tokenizer.eos_token_id is None:
                raise DataError(
                    "TTTTrainer: tokenizer.eos_token is None, up to which objective='grpo' samples. Set it, or use "
                    "objective='sft'."
                )
            self.method = Reinforcement(args.settings(), args.ttt_reward, self._reinforce)
        self._start = tree_map(torch.clone, self.lm.starting_lora().start(1))

    # -- adapting -----------------------------------------------------------------------------------------------------

    @overload
    def adapt(self, tasks: Task) -> Adaptation: ...
    @overload
    def adapt(self, tasks: Sequence[Task]) -> list[Adaptation]: ...
    def adapt(self, tasks: Task | Sequence[Task]) -> Adaptation | list[Adaptation]:
        """Train on one task, or on many: side by side, or one adapter for all (`adapters="shared"`).

        A task that cannot be trained on gets a record with the reason. Nothing stays in the model.
        """
        several = [tasks] if isinstance(tasks, Task) else require_tasks(tasks, "TTTTrainer.tasks")
        records = self._session().adapt(several)
        return records[0] if isinstance(tasks, Task) else records

    def _session(self) -> Session:
        return Session(self.lm, self.method, self.args.seed)

    def train(self, *args: Any, **kwargs: Any) -> list[Adaptation]:
        """Adapt to the train tasks and keep their adapters under `output_dir` (see `TaskResult.adapter`).

        Raises:
            DataError: If there are no train tasks.
        """
        if not self.train_tasks:
            raise DataError("TTTTrainer.train: there is no train_dataset. Give tasks to the trainer, or call predict.")
        records = self.trained = self._session().adapt(self.train_tasks)
        store = self._store(True, self.train_tasks)
        store.begin(resume=False)
        for record in records if self.accelerator.is_main_process else []:
            result = TaskResult(
                record.task, (), (), record.reason, record.examples, record.losses, guard=record.guard_note
            )
            self._put_away(store, result, record, keep=True)
        return records

    # -- answering ----------------------------------------------------------------------------------------------------

    def predict(
        self,
        tasks: Sequence[Task],
        resume: bool = False,
        adapt: bool = True,
        records: Sequence[Adaptation] | None = None,
    ) -> list[TaskResult]:
        """Adapt to every task and answer it; each finished task is saved under `output_dir` at once.

        Args:
            tasks: The tasks. Those with the same demonstrations share an adapter.
            resume: Take the tasks that an earlier run with the same settings finished there as they are.
            adapt: False answers with the model as it is, for comparison.
            records: What `adapt` gave for these tasks, here or in a trainer of the same base, to answer with instead of
                training; nothing is saved then.

        Returns:
            A result for each task. One that failed has its reason; it does not end the others.

        Raises:
            ConfigError: If `resume` meets other settings, or is neither True nor False.
            DataError: If there are no tasks, not as many records, or one of another LoRA.
        """
        several = require_tasks(tasks, "TTTTrainer.tasks")
        for name, value in (("resume", resume), ("adapt", adapt)):
            if not isinstance(value, bool):
                raise ConfigError(f"TTTTrainer.predict: {name} is {shown(value)}; choose True or False.")
        if records is not None:
            if len(records) != len(several):
                raise DataError(f"TTTTrainer.predict: {len(records)} records for {len(several)} tasks; give one each.")
            adaptations = [self._own_adapter(record) for record in records]
            return self._attempt(
                several, lambda at: self._answer([several[n] for n in at], [adaptations[n] for n in at])
            )
        store = self._store(adapt, several)
        store.begin(resume)
        here = {n: r for n, t in enumerate(several) if (r := store.finished(t) if resume else None) is not None}
        # All go by what any of them found, and have looked before the first one saves: else they would do other tasks.
        results = dict(gather_object(list(here.items())))
        todo = [n for n in range(len(several)) if n not in results]
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        alone = self.args.objective == "grpo" and adapt  # whose training takes all processes together
        one_for_all = self._session().adapt(several) if adapt and self.args.adapters == "shared" and todo else None
        chunks = passes([several[n] for n in todo], 1 if self.args.objective == "grpo" else self.args.tasks_per_pass)
        share = [[todo[i] for i in chunk] for chunk in (chunks if alone else chunks[rank::world])]
        for chunk in track(share, "Tasks", disable=bool(self.args.disable_tqdm) or rank > 0):
            trained = None if one_for_all is None else [one_for_all[n] for n in chunk]
            outcomes = self._chunk([several[n] for n in chunk], store, adapt, trained, save=not alone or rank == 0)
            results.update(zip(chunk, outcomes, strict=True))
        if not alone:
            results = dict(gather_object(list(results.items())))
        if failures := [result.reason for result in results.values() if result.reason is not None]:
            logger.warning("%d of %d tasks failed; first: %s", len(failures), len(several), failures[0])
        return [results[n] for n in range(len(several))]

    def evaluate(
        self,
        eval_dataset: Sequence[Task] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        resume: bool = False,
        adapt: bool = True,
    ) -> dict[str, float]:
        """pass@1, pass@2, oracle and cell accuracy over the tasks whose answer is known.

        Returns:
            `{prefix}_pass@1` and so on, `{prefix}_tasks` and `{prefix}_failed`, the number of tasks with a reason or on
            which the verifier raised; these have no score.

        Raises:
            DataError: If there are no tasks, or none has a known answer.
        """
        tasks = self.eval_tasks if eval_dataset is None else require_tasks(eval_dataset, "TTTTrainer.eval_dataset")
        if not tasks:
            raise DataError("TTTTrainer.evaluate: there is no eval_dataset. Pass tasks here or to the trainer.")
        results = self.predict(tasks, resume=resume, adapt=adapt)
        scores = [try_scoring(result.task, result.answers, result.predictions) for result in results]
        if errors := [score for score in scores if isinstance(score, VerifierError)]:
            logger.warning("%d of %d tasks could not be judged; first: %s", len(errors), len(tasks), errors[0])
        means = mean_scores([None if isinstance(score, VerifierError) else score for score in scores])
        if errors and not means:
            raise errors[0]
        if not means:
            raise DataError(f"TTTTrainer.evaluate: none of {len(tasks)} tasks has an answer to compare with.")
        failed = sum(
            result.reason is not None or isinstance(score, VerifierError)
            for result, score in zip(results, scores, strict=True)
        )
        figures = {**means, "tasks": len(tasks), "failed": failed}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        with deterministic(self.model):  # the log of a model in training mode would take TRL's training metrics along
            self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _chunk(
        self, tasks: list[Task], store: ResultStore, adapt: bool, records: list[Adaptation] | None, save: bool
    ) -> list[TaskResult]:
        trained = dict(enumerate(records or ([] if adapt else map(Adaptation, tasks))))

        def work(places: list[int]) -> list[TaskResult]:
            part = [tasks[place] for place in places]
            if not all(place in trained for place in places):
                trained.update(zip(places, self._session().adapt(part), strict=True))
            return self._answer(part, [trained[place] for place in places])

        begun = time.perf_counter()
        results = self._attempt(tasks, work)
        seconds = (time.perf_counter() - begun) / len(tasks)
        results = [replace(result, seconds=seconds) for result in results]
        if save:
            keep = self.args.keep_adapters and adapt
            results = [self._put_away(store, r, trained.get(n), keep) for n, r in enumerate(results)]
        return results

    def _attempt(
        self, tasks: list[Task], work: Callable[[list[int]], list[TaskResult]], places: list[int] | None = None
    ) -> list[TaskResult]:
        """Do the work for all places; if that fails, one by one, so that a task's failure does not end the others."""
        places = list(range(len(tasks))) if places is None else places
        try:
            return work(places)
        except ConfigError:
            raise
        except Exception as error:  # whatever it is, the other tasks go on, and the reason is kept
            if len(places) == 1:
                task = tasks[places[0]]
                logger.warning("Task %r failed.", task.id, exc_info=True)
                return [TaskResult(task, reason=f"{type(error).__name__}: {error}")]
        return [result for place in places for result in self._attempt(tasks, work, [place])]

    def _answer(self, tasks: list[Task], records: Sequence[Adaptation]) -> list[TaskResult]:
        answers, _ = self._session().answer(tasks, records)
        return [
            TaskResult(
                a.task,
                a.ranked,
                a.predictions,
                record.reason or a.reason,
                record.examples,
                record.losses,
                guard=record.guard_note,
            )
            for a, record in zip(answers, records, strict=True)
        ]

    # -- saving -------------------------------------------------------------------------------------------------------

    def _put_away(self, store: ResultStore, result: TaskResult, record: Adaptation | None, keep: bool) -> TaskResult:
        tree = None if record is None else record.adapted
        weights = self.lm.starting_lora().state_dict(tree, 0) if keep and tree is not None else None
        return store.save(result, weights, self.model.peft_config["default"])

    def _store(self, adapt: bool, tasks: Sequence[Task]) -> ResultStore:
        """Where results go, with what they depend on: settings, seed, base, starting adapter, tasks that share one."""
        settings = {
            **self.args.result_settings(),
            "adapt": adapt,
            "base": str(self.model.get_base_model().config.name_or_path),
            "base_weights": base_digest(self.model.get_base_model(), self._tokenizer),
            "start": lora_digest(self.lm.starting_lora(), self._start),
            "tasks": tasks_digest(tasks) if adapt and self.args.adapters == "shared" else None,
        }
        return ResultStore(str(self.args.output_dir), settings)

    # -- reinforcement learning at test time --------------------------------------------------------------------------

    def _reinforce(self, prompts: list[ReinforcedPrompt]) -> tuple[Tree, tuple[float, ...]]:
        """(trained matrices, mean reward of each logged step) of TRL's loop from the starting state."""
        self._prompts = prompts
        texts = [f"{number}: {prompt.text}" for number, prompt in enumerate(prompts)]
        self.train_dataset = Dataset.from_dict({"prompt": texts, "prompt_index": list(range(len(texts)))})
        self.optimizer = self.lr_scheduler = None
        self._step, self._buffered_inputs = 0, None  # a run of its own: TRL counts and buffers over a trainer's life
        with host_random_state():
            set_seed(self.args.seed, device_specific=True)  # as TRL does once, so that tasks end as they would alone
            self._random_state = RandomState.now()
        lora = self.lm.starting_lora()
        try:
            super().train()
            tree = tree_map(torch.clone, lora.start(1))
            rewards = tuple(entry["reward"] for entry in self.state.log_history if "reward" in entry)
        finally:
            lora.load(self._start)
            self.model.zero_grad()
        return tree, rewards

    def _ttt_reward(self, completion_ids: list[list[int]], prompt_index: list[int], **kwargs: Any) -> list[float]:
        answers = FewShotAnswers(self.lm, self.args.settings())
        return ttt_reward(self._prompts, answers.encoder.format, answers.encoder.texts(completion_ids), prompt_index)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Token ids as the engine makes them, so that training and answering see the same prompt."""
        numbers = [int(prompt.partition(":")[0]) for prompt in prompts]  # others may read alike
        return [self._prompts[number].ids for number in numbers], None, {}

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], Any]:
        """TRL's completions, each cut behind the text that ends an answer."""
        completions, log_probs = super()._generate_single_turn(*args, **kwargs)
        stop = FewShotAnswers(self.lm, self.args.settings()).encoder.stop()
        lengths = [tokens_up_to(self._tokenizer, ids, stop) for ids in completions]
        completions = [ids[:length] for ids, length in zip(completions, lengths, strict=True)]
        if log_probs is not None:
            log_probs = [row[:length] for row, length in zip(log_probs, lengths, strict=True)]
        return completions, log_probs
