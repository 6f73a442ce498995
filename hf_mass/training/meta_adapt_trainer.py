"""`MetaAdaptTrainer`: MASS on TRL's GRPO machinery (arXiv 2603.03524).

The m auxiliary samples of one task are one GRPO group. Their reward is an ordinary TRL reward function, which adapts to
each task, judges the adapted weights and gives every sample its attribution; so generation, advantage normalisation,
clipping, the KL term, logging, vLLM and checkpointing stay TRL's. Beside the policy loss, the scorer gets its exact
gradient and the generator's adapter that of γ·L_solve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import LoraConfig, PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl

from hf_mass.errors import ConfigError, DataError
from hf_mass.lm.binding import clear_target_errors, deterministic, require_plain_lora
from hf_mass.lm.fingerprint import base_digest
from hf_mass.lm.prefix import require_no_state
from hf_mass.methods.mass_card import mass_card
from hf_mass.methods.mass_files import write_config
from hf_mass.methods.mass_model import GENERATOR, INNER, MassModel
from hf_mass.methods.mass_settings import BY_DEMONSTRATIONS
from hf_mass.methods.samples import read_sample
from hf_mass.methods.scorer import Scorer
from hf_mass.store.card import CardParts, write_basic_card
from hf_mass.store.shipped import resolve_shipped
from hf_mass.tasks.formats import FORMATS, PromptFormat
from hf_mass.tasks.hub_datasets import plain_rows
from hf_mass.tasks.sources import Columns, task_from_row, validate_tasks
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import get_verifier
from hf_mass.training.adaptation_eval import AdaptationEvalPrediction, evaluate_adaptation
from hf_mass.training.checkpoints import require_base, require_same_run, write_base
from hf_mass.training.meta_adapt_config import MetaAdaptConfig
from hf_mass.training.outer import OuterLoop, OuterStep, ScorerCallback, trainable_parameters
from hf_mass.training.publishing_trainer import require_parts
from hf_mass.training.resumable_trainer import ResumableTrainer, run_settings
from hf_mass.training.task_data import PromptIds, fitting_tasks, prompt_dataset, require_tasks

TaskData: TypeAlias = Dataset | Sequence[Task]


class MetaAdaptTrainer(ResumableTrainer):
    """Meta-trains a generator adapter and a scorer so that an inner LoRA step on the generator's samples helps.

    Args:
        model: Hub id, folder, `PreTrainedModel`, or `PeftModel` whose "default" adapter is trained further.
        args: Settings.
        train_dataset: `Task`s, or a dataset with the columns named by `columns`.
        eval_dataset: The same, or a dict of several.
        processing_class: Tokenizer; by default the model's.
        peft_config: The generator's LoRA; rank 16 on all linear modules by default.
        prompt_format: Prompts and patterns; by default `args.prompt_format`.
        columns: Names of dataset columns.
        reward_funcs: Further TRL reward functions on the samples' texts, added to the attribution reward.
        compute_metrics: Given an `AdaptationEvalPrediction`, returns metrics that `evaluate` adds to its own.
        callbacks: As in TRL.
        optimizers: As in TRL.

    Raises:
        ConfigError: If a setting or LoRA targets are wrong.
        VerifierError: If a verifier is unknown.
        DataError: If columns or values are missing, or a task lacks what `args.outer_loss` needs.
        UnsupportedModelError: If the model keeps a state, which padding in front of prompts would spoil.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "hf_mass", "mass"]
    _name = "MASS"
    control: TrainerControl

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: MetaAdaptConfig | None = None,
        train_dataset: TaskData | None = None,
        eval_dataset: TaskData | dict[str, TaskData] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        prompt_format: PromptFormat | None = None,
        columns: Columns | None = None,
        reward_funcs: Callable[..., Any] | list[Callable[..., Any]] | None = None,
        compute_metrics: Callable[[AdaptationEvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        require_parts("MetaAdaptTrainer", model, args, MetaAdaptConfig, peft_config)
        args = args or MetaAdaptConfig(output_dir="outputs/mass")
        get_verifier(args.verifier)
        self.prompt_format, self.columns = prompt_format or FORMATS[args.prompt_format], columns or Columns()
        self.compute_adaptation_metrics = compute_metrics
        if train_dataset is None:
            raise DataError("MetaAdaptTrainer.train_dataset is None; pass tasks or a dataset.")
        self.train_tasks = self._to_tasks(train_dataset, args)
        validate_tasks(self.train_tasks, need_gold=args.outer_loss == "gold", need_demonstrations=False)
        self.eval_tasks = {} if eval_dataset is None else self._eval_tasks(eval_dataset, args)
        # For the Trainer, which checks that there is one where eval_strategy asks for it; `evaluate` takes the tasks.
        eval_prompts = {name: prompt_dataset(tasks, self.prompt_format) for name, tasks in self.eval_tasks.items()}
        model = str(resolve_shipped(model)) if isinstance(model, str | Path) else model
        if not isinstance(model, PeftModel) and peft_config is None:
            peft_config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        given = model.peft_config.get(GENERATOR) if isinstance(model, PeftModel) else peft_config
        if given is not None:
            require_plain_lora("peft_config", given)
        extra = [] if reward_funcs is None else reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        with clear_target_errors("peft_config.target_modules", peft_config):
            super().__init__(
                model=model,
                reward_funcs=[self.attribution, *extra],
                args=args,
                train_dataset=prompt_dataset(self.train_tasks, self.prompt_format),
                eval_dataset=eval_prompts or None,
                processing_class=processing_class,
                peft_config=peft_config,
                callbacks=callbacks,
                optimizers=optimizers,
            )
        self._check_adapter()
        parts = (self.model, self.processing_class)
        about: dict[str, Any] = {"chat_template_kwargs": args.chat_template_kwargs or {}}
        self.mass = MassModel(*parts, args.mass_config(self.prompt_format), seed=args.seed, **about)
        training = MassModel(*parts, args.mass_config(self.prompt_format, training=True), self.mass.scorer, **about)
        self.outer_loop = OuterLoop(training, args)
        self.add_callback(ScorerCallback(self.mass.scorer))
        self._outer_step: OuterStep | None = None
        self._scorer_gradient: list[torch.Tensor] = []
        self._generator_gradient: dict[str, torch.Tensor] = {}
        numbers = fitting_tasks(self.train_tasks, self.outer_loop.mass.encoder)
        if len(numbers) < len(self.train_tasks):
            self.train_dataset: Dataset = self.train_dataset.select(numbers)

    def _check_adapter(self) -> None:
        require_no_state(self.model)
        if GENERATOR not in self.model.peft_config:
            raise ConfigError(
                f"The PEFT model has adapters {sorted(self.model.peft_config)}; the generator's must be called "
                f"{GENERATOR!r}. Load it with adapter_name={GENERATOR!r}."
            )
        if not trainable_parameters(self.model):
            raise ConfigError(
                f"The PEFT model's adapter {GENERATOR!r} has no trainable parameters. Load it with "
                "PeftModel.from_pretrained(..., is_trainable=True)."
            )

    # -- data ---------------------------------------------------------------------------------------------------------

    def _to_tasks(self, data: TaskData, args: MetaAdaptConfig) -> list[Task]:
        tasks: Any = data
        if isinstance(data, Dataset):
            how = (self.columns, args.verifier, self.prompt_format)
            tasks = [task_from_row(row, *how, number=number) for number, row in enumerate(plain_rows(data))]
        tasks = require_tasks(tasks, "A dataset of MetaAdaptTrainer")
        validate_tasks(tasks, need_gold=False, need_demonstrations="attribution" in args.scorer_features)
        return tasks

    def _eval_tasks(self, data: TaskData | dict[str, TaskData], args: MetaAdaptConfig) -> dict[str, list[Task]]:
        by_name = data if isinstance(data, dict) else {"": data}
        sets = {name: self._to_tasks(part, args) for name, part in by_name.items()}
        for tasks in sets.values():
            validate_tasks(tasks, need_gold=False, need_demonstrations=args.weigh_by in BY_DEMONSTRATIONS)
        return sets

    # -- the reward of the generator ----------------------------------------------------------------------------------

    def attribution(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        task_index: list[int],
        log_extra: Callable[[str, list[Any]], None],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float | None]:
        """The TRL reward function of this name: rewards of this process's samples.

        Groups may be split between processes, so samples are gathered first; then every process takes whole groups,
        and the results are gathered again.
        """
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        everything = gather_object(list(zip(task_index, texts, completion_ids, strict=True)))
        m, rank, world = self.num_generations, self.accelerator.process_index, self.accelerator.num_processes
        groups = [everything[start : start + m] for start in range(0, len(everything), m)]
        places = range(rank, len(groups), world)
        tables = self._outer([groups[g] for g in places]) if len(places) else []
        by_group = dict(gather_object(list(zip(places, tables, strict=True))))
        self._share_metrics(log_metric)
        self._share_gradients(len(groups))
        rows = [row for g in range(len(groups)) for row in by_group[g]]
        local = rows[rank * len(texts) : (rank + 1) * len(texts)]
        for column in ("weight", "attribution", "question", "answer", "reason"):
            log_extra(column, [row[column] for row in local])
        return [row["reward"] for row in local]

    @cached_property
    def _prompt_ids(self) -> PromptIds:
        return PromptIds(self.train_tasks, self.mass.encoder)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return self._prompt_ids(prompts), None, {}

    def _outer(self, groups: list[list[tuple[int, str, list[int]]]]) -> list[list[dict[str, Any]]]:
        tasks = [self.train_tasks[group[0][0]] for group in groups]
        samples = [[read_sample(text, ids, self.prompt_format) for _, text, ids in group] for group in groups]
        every = max(1, int(self.args.logging_steps))
        detailed = self.state.global_step % every == 0
        step = self._outer_step = self.outer_loop(tasks, samples, self.state.global_step, detailed)
        return [
            [
                {
                    "reward": None if torch.isnan(step.rewards[n, i]) else float(step.rewards[n, i]),
                    "weight": float(step.weights[n, i]),
                    "attribution": -float(step.attributions[n, i]),  # positive = helpful
                    "question": sample.question,
                    "answer": sample.answer,
                    "reason": sample.reason or "",
                }
                for i, sample in enumerate(group)
            ]
            for n, group in enumerate(samples)
        ]

    def _share_metrics(self, log_metric: Callable[[str, float], None]) -> None:
        """Log means over the tasks of all processes, which need not have equally many."""
        parts = gather_object([self._outer_step.metrics if self._outer_step else {}])
        for name in sorted({name for part in parts for name in part}):
            values = [value for part in parts for value in part.get(name, [])]
            if values:
                log_metric(name, sum(values) / len(values))

    def _share_gradients(self, num_tasks: int) -> None:
        """Turn every process's sums over its tasks into means over all tasks; kept until the optimizer has stepped."""
        step, self._outer_step = self._outer_step, None
        self._scorer_gradient = [
            self._reduced(step.scorer_gradient[i] if step else torch.zeros_like(p)) / num_tasks
            for i, p in enumerate(self.mass.scorer.parameters())
        ]
        self._generator_gradient = {}
        if self.args.solve_coefficient > 0:
            for name, p in trainable_parameters(self.model).items():
                total = step.generator_gradient.get(name, torch.zeros_like(p)) if step else torch.zeros_like(p)
                self._generator_gradient[name] = self._reduced(total) / num_tasks

    def _reduced(self, value: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(value.float(), reduction="sum")

    # -- losses -------------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """TRL's clipped policy loss, plus γ·L_solve by its gradient; the scorer's gradient is set beside it.

        L_solve enters as the linear function ⟨∇L_solve, φ⟩ − (its own value): the same gradient, no graph kept since
        the rewards were calculated.
        """
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        share = 1.0 / self.current_gradient_accumulation_steps
        if self.args.train_scorer:
            for parameter, gradient in zip(self.mass.scorer.parameters(), self._scorer_gradient, strict=True):
                part = share * gradient.to(parameter.dtype)
                parameter.grad = part if parameter.grad is None else parameter.grad + part
        parameters = trainable_parameters(self.model)
        for name, gradient in self._generator_gradient.items():
            linear = (gradient.to(parameters[name].dtype) * parameters[name]).sum()
            loss = loss + self.args.solve_coefficient * share * (linear - linear.detach())
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, or the one that was given, with the scorer as a parameter group of its own rate.

        Raises:
            ConfigError: If an optimizer without the scorer was given together with a scheduler, which knows the
                optimizer's groups already.
        """
        optimizer = super().create_optimizer(model)
        scorer, rate = list(self.mass.scorer.parameters()), self.args.scorer_learning_rate
        present = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if all(id(p) in present for p in scorer):
            return optimizer
        if self.lr_scheduler is not None:
            raise ConfigError(
                "MetaAdaptTrainer.optimizers holds a scheduler and an optimizer without the scorer's parameters, which "
                "cannot be added any more. Give the optimizer alone: (optimizer, None)."
            )
        optimizer.add_param_group({"params": scorer, "lr": rate, "initial_lr": rate, "weight_decay": 0.0})
        return optimizer

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: TaskData | dict[str, TaskData] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Greedy accuracy before and after adaptation with the inference settings (K, m, `weigh_by`).

        Returns:
            `{prefix}_accuracy`, `{prefix}_adapted_accuracy`, `{prefix}_parse_rate` and what `compute_metrics` adds.
        """
        sets = self.eval_tasks if eval_dataset is None else self._eval_tasks(eval_dataset, self.args)
        if not sets:
            raise DataError("MetaAdaptTrainer.evaluate: there is no eval_dataset. Pass one here or to the trainer.")
        metrics: dict[str, float] = {}
        for name, tasks in sets.items():
            prefix = f"{metric_key_prefix}_{name}" if name else metric_key_prefix
            prediction = evaluate_adaptation(
                self.mass, tasks, self.accelerator, self.args.weigh_by, self.args.per_device_eval_batch_size
            )
            values = prediction.metrics()
            if self.compute_adaptation_metrics is not None:
                values.update(self.compute_adaptation_metrics(prediction))
            metrics.update({f"{prefix}_{key}": value for key, value in values.items()})
        with deterministic(self.model):  # the log of a model in training mode would take TRL's training metrics along
            self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # -- saving and resuming ------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A `MassModel` folder; inside a checkpoint, TRL's files and the scorer beside them."""
        folder = output_dir or self.args.output_dir
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            if self.args.should_save:
                self.mass.scorer.save(Path(folder) / "scorer")
                write_config(self.mass.config, Path(folder))
                write_base(folder, self._base_digest(), self._run_settings())
            return
        if self.args.should_save:
            self.mass.save_pretrained(folder)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save")

    def save_published(self, folder: Path) -> None:
        """A `MassModel` folder."""
        self.mass.save_pretrained(folder)

    def published_card(self, **details: Any) -> CardParts:
        """What the model card is made from: settings of the inner loop, prompts and scorer, and `details`."""
        return mass_card(self.mass.config, **details)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """A README.md beside a checkpoint that claims nothing measured; one with more in it stays."""
        if self.is_world_process_zero():
            base = self.model.peft_config[GENERATOR].base_model_name_or_path or None
            Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
            write_basic_card(self.args.output_dir, self.published_card(base_model=base, repo_id=self.hub_model_id))

    def _base_digest(self) -> str:
        return base_digest(self.model.get_base_model(), self.mass.tokenizer)

    def _run_settings(self) -> dict[str, Any]:
        """What a run keeps to its end, see `run_settings`; also what its weights have their shapes and scale from."""
        inner = self.model.peft_config[INNER]
        lora = {
            "inner_lora_r": inner.r,
            "inner_lora_alpha": inner.lora_alpha,
            "inner_target_modules": inner.target_modules,
        }
        scorer = {name: getattr(self.args, name) for name in ("scorer_features", "scorer_width")}
        return run_settings(self.args, self.model.peft_config[GENERATOR], self.train_tasks, {**lora, **scorer})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        require_base(resume_from_checkpoint, self._base_digest())
        require_same_run(resume_from_checkpoint, self._run_settings())
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_scorer(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_scorer(self.state.best_model_checkpoint)

    def _load_scorer(self, checkpoint: str) -> None:
        self.mass.scorer.load_state_dict(Scorer.load(Path(checkpoint) / "scorer").state_dict())
