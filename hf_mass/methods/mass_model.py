"""`MassModel`: a base with a generator adapter, an inner adapter and a scorer, that adapts to a task and solves it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, overload

import torch
from huggingface_hub import CommitInfo
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mass.core.inner_loop import Trajectory
from hf_mass.core.meter import metered
from hf_mass.core.trees import Tree, concatenate_rows, tree_map
from hf_mass.core.weights import uniform_weights
from hf_mass.errors import ConfigError, DataError
from hf_mass.lm.adapters import Part
from hf_mass.lm.base_models import load_base, load_tokenizer
from hf_mass.lm.binding import add_lora, deterministic
from hf_mass.lm.encoding import TextEncoder
from hf_mass.lm.generation import Sampling, complete, row_seed
from hf_mass.lm.language_model import LanguageModel, has_lora, lora_config, replace_lora, with_starting_lora
from hf_mass.lm.loading import GENERATOR, INNER, describe_base, is_lora, load_adapted, load_lora_alone
from hf_mass.lm.shapes import LoraShape
from hf_mass.lm.turns import one_at_a_time, single_precision
from hf_mass.methods.base import Adaptation, Answer, Cost
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.methods.inner import InnerAdapter, InnerProblem
from hf_mass.methods.judging import judge
from hf_mass.methods.mass_card import mass_card
from hf_mass.methods.mass_files import CONFIG_NAME, REQUIRED, named_targets, read_base, read_config, write_config
from hf_mass.methods.mass_settings import WEIGHINGS, MassConfig
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.methods.sampling import few_usable, is_ended, sharing_samples, write_samples
from hf_mass.methods.scorer import Scorer, scorer_features
from hf_mass.store.adapters import make_portable, write_adapter
from hf_mass.store.folders import read_whole
from hf_mass.store.publishing import publish
from hf_mass.store.shipped import resolve_shipped
from hf_mass.store.storage import resolve, write_atomically
from hf_mass.tasks.checks import as_path, shown
from hf_mass.tasks.task import Task


class MassModel(LanguageModel):
    """Generator, scorer and inner loop around one causal language model.

    Args:
        model: A PEFT model whose "default" adapter is the generator. An "inner" adapter is added if it has none.
        tokenizer: Its tokenizer.
        config: Settings; see `MassConfig`.
        scorer: A trained scorer; None for a new one, which weighs all samples alike.
        seed: Draws the inner adapter's initial matrices, where it is added here.
        about: Further fields of `LanguageModel`.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        config: MassConfig,
        scorer: Scorer | None = None,
        seed: int = 0,
        **about: Any,
    ) -> None:
        super().__init__(model, tokenizer, **about)
        self.config = config
        inner = lora_config(LoraShape(config.inner.lora_rank, config.inner.lora_alpha, config.inner.target_modules))
        present = model.peft_config.get(INNER)
        if not has_lora(model, INNER, inner):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(row_seed("inner", seed))
                add_lora(model, INNER, inner) if present is None else replace_lora(model, INNER, inner)
        rooms = (config.max_length, config.max_sample_tokens, config.max_answer_tokens)
        few_shot, kwargs = config.few_shot_format, self.chat_template_kwargs
        self.encoder = TextEncoder(tokenizer, config.format, *rooms, few_shot=few_shot, chat_template_kwargs=kwargs)
        self.adapter = InnerAdapter(model, self.encoder, config, INNER)
        if scorer is None:
            with torch.random.fork_rng(devices=[]), single_precision():
                torch.manual_seed(row_seed("scorer", seed))
                scorer = Scorer(config.scorer, model.config.get_text_config().hidden_size)
        self.scorer = scorer.to(self.device)

    @classmethod
    def on(cls, lm: LanguageModel, config: MassConfig) -> MassModel:
        """The same weights, and the scorer of a `MassModel`, with other settings; untrained MASS on any other model."""
        names = (f.name for f in fields(LanguageModel) if f.name not in ("model", "tokenizer"))
        scorer = lm.scorer if isinstance(lm, MassModel) and lm.config.scorer == config.scorer else None
        return cls(lm.model, lm.tokenizer, config, scorer, **{name: getattr(lm, name) for name in names})

    @classmethod
    def from_base(
        cls,
        base: str | Path | PreTrainedModel,
        config: MassConfig,
        generator: LoraConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        seed: int = 0,
        **model_kwargs: Any,
    ) -> MassModel:
        """An untrained model: a uniform scorer, and a new generator adapter, or that of a LoRA given as base."""
        if isinstance(base := resolve_shipped(base), str | Path) and is_lora(base):
            return cls(*load_lora_alone(Path(base), generator, tokenizer, model_kwargs), config, seed=seed)
        if not isinstance(base, PreTrainedModel):
            about: dict[str, Any] = {name: model_kwargs.get(name) for name in ("token", "revision")}
            base, tokenizer = load_base(base, **model_kwargs), tokenizer or load_tokenizer(base, **about)
        if tokenizer is None:
            raise ConfigError("MassModel.from_base: tokenizer is None; pass the tokenizer of the model instance.")
        generator = generator or LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        return cls(with_starting_lora(base, generator, seed), tokenizer, config, seed=seed)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        base: str | Path | PreTrainedModel | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        **model_kwargs: Any,
    ) -> MassModel:
        """A saved model, from a folder or a Hub repository.

        Args:
            path_or_id: Folder, or Hub id.
            base: The base model; by default the one that the generator's adapter_config.json names.
            revision: Branch, tag or commit of a Hub repository; not of the base.
            token: Token for a private repository; also for the base.
            model_kwargs: Passed to `AutoModelForCausalLM.from_pretrained`.

        Raises:
            HubError: If the repository or the base cannot be had: it is missing, private, gated, or out of reach.
            CheckpointError: If a file is missing, damaged, pickled or of an unknown version, or the base is another.
        """
        cure = "Load it with PeftModel.from_pretrained, and pass the model to MassModel."
        folder = resolve(resolve_shipped(path_or_id), revision, token, REQUIRED, "saved MassModel", cure)

        def read() -> MassModel:
            config, scorer = read_config(folder), Scorer.load(folder / "scorer")
            adapted = load_adapted(folder, str(path_or_id), read_base(folder), base, token, model_kwargs)
            return cls(*adapted, config, scorer)

        return read_whole(folder, CONFIG_NAME, read)

    def save_pretrained(self, path: str | Path) -> None:
        """Write mass_config.json, generator/, inner/, scorer/ and the tokenizer: all of it or nothing, as
        `write_atomically` does. mass_config.json has the digests of the others: a mixture is refused at loading.
        """

        def write(folder: Path) -> None:
            self.model.save_pretrained(folder / "generator", selected_adapters=[GENERATOR])
            # PEFT's card, which names local paths, in place of our own
            (folder / "generator" / "README.md").unlink(missing_ok=True)
            make_portable(folder / "generator")
            inner = self.adapter.lora  # the model may have another one of this name by now
            about = {**inner.config.to_dict(), "inference_mode": True}
            write_adapter(folder / INNER, inner.state_dict(inner.start(1), 0), about)
            inside = make_portable(folder / INNER)
            self.scorer.save(folder / "scorer")
            self.tokenizer.save_pretrained(folder)
            write_config(named_targets(self.config, inside), folder, describe_base(self.model))

        as_path("path", path)
        write_atomically(Path(path), write, CONFIG_NAME)

    def push_to_hub(self, repo_id: str, **options: Any) -> CommitInfo:
        """Save and upload in one commit, as `push_folder` does; a README.md with something measured stays."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return publish(Path(folder), repo_id, mass_card(self.config, repo_id=repo_id), **options)

    # -- generate, score, adapt, solve -------------------------------------------------------------------------------

    @one_at_a_time
    def generate_auxiliary(
        self, tasks: Task | Sequence[Task], count: int | None = None, seed: int = 0
    ) -> list[list[AuxiliarySample]]:
        """`count` (default: config.samples) auxiliary samples for each task.

        Raises:
            ConfigError: If `count` is below 1.
            DataError: If there is no task.
        """
        several, count = as_list(tasks), self.config.samples if count is None else count
        if count < 1:
            raise ConfigError(f"MassModel.generate_auxiliary: count is {count}; choose at least 1.")
        if not several:
            raise DataError("MassModel.generate_auxiliary: tasks is empty; give at least one task.")
        with deterministic(self.model):
            return write_samples(self.model, self.encoder, self.config, several, count, seed)

    @one_at_a_time
    def score(self, tasks: Task | Sequence[Task], samples: Sequence[Sequence[AuxiliarySample]]) -> Tensor:
        """s_η [N, m]: the scorer's weights of the samples of each task."""
        problem = self.adapter.problem(as_list(tasks), samples)
        with torch.no_grad():
            return self.scorer(self.features(problem), problem.usable)

    def features(self, problem: InnerProblem, uniform: Trajectory | None = None) -> dict[str, Tensor]:
        """The scorer's inputs. `uniform` saves a pass where the trajectory at equal weights is known."""
        names = self.config.scorer.features
        with deterministic(self.model):
            attributions = torch.zeros(problem.usable.shape, device=self.device)
            if "attribution" in names and problem.loss is not None:
                uniform = uniform or self.adapter.run(problem, uniform_weights(problem.usable))
                attributions = self.adapter.demonstration_attributions(problem, uniform)
            return scorer_features(names, self.model, self.encoder, problem.tasks, problem.samples, attributions)

    @overload
    def adapt(self, tasks: Task, *args: Any, **options: Any) -> Adaptation: ...
    @overload
    def adapt(self, tasks: Sequence[Task], *args: Any, **options: Any) -> list[Adaptation]: ...
    @one_at_a_time
    def adapt(
        self,
        tasks: Task | Sequence[Task],
        weigh_by: str | None = None,
        samples: Sequence[Sequence[AuxiliarySample]] | None = None,
        seed: int = 0,
    ) -> Adaptation | list[Adaptation]:
        """Adapt to one task, or to many in one pass; nothing of it stays in the model.

        Args:
            tasks: One task (gives one record) or a list (gives a list).
            weigh_by: "scorer", "demonstrations" (attribution to the task's own demonstrations; no label, no training),
                "matching" (as a set, by the gradient of the loss on them) or "uniform"; default from the config.
            samples: Auxiliary samples of each task; generated if None.
            seed: For generating.

        Raises:
            ConfigError: If `weigh_by` is unknown.
            DataError: If `weigh_by` is "demonstrations" or "matching" and a task has no demonstrations.
        """
        weigh_by = weigh_by or self.config.weigh_by
        if weigh_by not in WEIGHINGS:
            raise ConfigError(f"weigh_by is {shown(weigh_by)}; choose one of {list(WEIGHINGS)}.")
        several, start = as_list(tasks), time.perf_counter()
        with metered() as meter:
            if samples is None:
                samples = self.generate_auxiliary(several, seed=seed)
            owners = sharing_samples(self.encoder, several, samples)
            first = list(dict.fromkeys(owners))
            groups = samples if len(first) == len(several) else [samples[n] for n in first]
            problem = self.adapter.problem([several[n] for n in first], groups, row_seed("dropout", seed))
            with deterministic(self.model):
                weights, attributions, trajectory = self._weigh(problem, weigh_by)
                losses = self.adapter.sample_losses(problem, trajectory)
        cost = Cost.of(meter, time.perf_counter() - start, len(several))
        outcome = (problem, weights, attributions, trajectory, losses, cost)
        records = {owner: self._adaptation(n, owners.count(owner), *outcome) for n, owner in enumerate(first)}
        adaptations = [replace(records[owner], task=task) for task, owner in zip(several, owners, strict=True)]
        return adaptations[0] if isinstance(tasks, Task) else adaptations

    def _weigh(self, problem: InnerProblem, weigh_by: str) -> tuple[Tensor, Tensor | None, Trajectory | None]:
        weights = uniform_weights(problem.usable)
        if problem.loss is None:
            return weights, None, None
        if weigh_by == "matching":
            return self.adapter.weigh_by_matching(problem)
        uniform = self.adapter.run(problem, weights)
        if weigh_by == "uniform":
            return weights, None, uniform
        if weigh_by == "demonstrations":
            return self.adapter.weigh_by_demonstrations(problem, uniform)
        features = self.features(problem, uniform)
        with torch.no_grad():
            weights = self.scorer(features, problem.usable)
        return weights, None, uniform.reweighted(problem.to_rows(weights))

    def _adaptation(
        self,
        n: int,
        sharing: int,
        problem: InnerProblem,
        weights: Tensor,
        attributions: Tensor | None,
        trajectory: Trajectory | None,
        losses: Tensor,
        cost: Cost,
    ) -> Adaptation:
        """The record of task n, which `sharing` tasks have: weights and ∂L/∂s [N, m], losses [K + 1, N, m]."""
        usable, shares, samples = problem.usable[n].cpu(), weights[n].detach().float().cpu(), tuple(problem.samples[n])
        means: tuple[float, ...] = ()
        parts: tuple[Part, ...] = ()
        reason = few_usable(samples)
        if trajectory is None or not usable.any():
            reason = reason or "no usable sample"
        elif not torch.isfinite(losses[:, n, usable]).all():
            reason = "non-finite inner loss"
        elif not shares.any():
            reason = "no combination of the samples helps the demonstrations"
        else:
            means = tuple((losses[:, n, usable] * (shares[usable] / shares[usable].sum())).sum(1).tolist())
            generator = self.starting_lora()
            parts = ((generator, generator.start(1)), (self.adapter.lora, one_task(trajectory.adapted, n)))
        return Adaptation(
            problem.tasks[n],
            parts,
            reason,
            means,
            samples=samples,
            weights=shares,
            attributions=None if attributions is None else 0 - attributions[n].float().cpu(),
            sample_losses=losses[:, n],
            lm=self,
            cost=replace(cost, sampled_tokens=sum(len(sample.token_ids) for sample in samples) / sharing),
        )

    @overload
    def solve(self, tasks: Task, *args: Any, **options: Any) -> Answer: ...
    @overload
    def solve(self, tasks: Sequence[Task], *args: Any, **options: Any) -> list[Answer]: ...
    @one_at_a_time
    def solve(
        self,
        tasks: Task | Sequence[Task],
        adapted: Adaptation | Sequence[Adaptation] | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        always: bool = False,
    ) -> Answer | list[Answer]:
        """Solve one task or many in one batch: at the weights of the records given, else at the model's own.

        A task whose record has no adapted weights is solved at the model's own. `always` is that of `judge`.

        Raises:
            DataError: If there are not as many records as tasks.
        """
        several = as_list(tasks)
        records = [adapted] if isinstance(adapted, Adaptation) else adapted
        trees = [None] * len(several) if records is None else [record.adapted for record in records]
        if len(trees) != len(several):
            raise DataError(f"solve: {len(trees)} adaptations for {len(several)} tasks; give one for each task.")
        few_shot = [n for n, task in enumerate(several) if self.encoder.few_shot_for(task)]
        asked = [n for n in range(len(several)) if n not in few_shot]
        answers = dict(zip(asked, self._solutions(several, trees, asked, temperature, seed, always), strict=True))
        if few_shot and (settings := self.config.few_shot) is not None:
            settings = replace(settings, predict_temperature=temperature or settings.predict_temperature)
            parts = [None if (tree := trees[n]) is None else (self.adapter.lora, tree) for n in few_shot]
            replies = FewShotAnswers(self, settings).answer([several[n] for n in few_shot], parts, seed)
            answers.update(zip(few_shot, replies, strict=True))
        in_order = [answers[n] for n in range(len(several))]
        return in_order[0] if isinstance(tasks, Task) else in_order

    def _solutions(
        self,
        tasks: Sequence[Task],
        trees: Sequence[Tree | None],
        asked: Sequence[int],
        temperature: float,
        seed: int,
        always: bool,
    ) -> list[Answer]:
        """Answers to the tasks of these numbers, which are asked by the solver's prompt."""
        sampling, ids = Sampling(self.config.max_answer_tokens, temperature), dict[int, list[int]]()
        with deterministic(self.model), self.adapter.lora.inactive():
            for is_adapted in (True, False):
                numbers = [n for n in asked if (trees[n] is not None) == is_adapted]
                if not numbers:
                    continue
                prompts = [self.encoder.solver_prompt_ids(tasks[n]) for n in numbers]
                seeds = [row_seed("solve", seed, tasks[n].id, tasks[n].problem) for n in numbers]
                if is_adapted:
                    params = concatenate_rows([tree for n in numbers if (tree := trees[n]) is not None])
                    rows = self.adapter.complete(params, prompts, range(len(numbers)), sampling, seeds)
                else:
                    rows = complete(self.model, self.tokenizer, prompts, sampling, seeds)
                ids.update(zip(numbers, rows, strict=True))
        texts = [self.tokenizer.decode(ids[n], skip_special_tokens=True) for n in asked]
        lengths, cut = [len(ids[n]) for n in asked], [not is_ended(self.encoder, ids[n]) for n in asked]
        return judge(self.config.format, [tasks[n] for n in asked], texts, lengths, always, cut)


def as_list(tasks: Task | Sequence[Task]) -> list[Task]:
    """One task or many as a list."""
    return [tasks] if isinstance(tasks, Task) else list(tasks)


def one_task(tree: Tree, task: int) -> Tree:
    """Leaves [1, ...] of one task, with storage of their own."""
    return tree_map(lambda x: x[task : task + 1].detach().clone(), tree)
