"""The outer step of MASS for the tasks of one process: adapt, judge the adapted weights, attribute the judgement.

The generator's adapter φ, which is active wherever the inner loop trains and the task is solved, gets ∂L_outer/∂φ. At
fixed adapted weights this is an ordinary gradient. In full it also follows the inner steps: with the cotangents ḡ_k of
the inner gradients (see `hf_mass.core.meta_gradients`),

    dL/dφ = ∂L/∂φ|_{θ'} + Σ_k ∂/∂φ Σ_r s_r ⟨∇_θ ℓ_r(θ_k; φ), ḡ_k⟩,

where the second term comes out of the same second-order pass as the Hessian-vector product of the inner step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_mass.core import trees
from hf_mass.core.inner_loop import Trajectory
from hf_mass.core.losses import OuterGradient, WeightedLoss, weighted_gradient
from hf_mass.core.second_order import hessian_product
from hf_mass.core.trees import Tree
from hf_mass.core.weights import logit_attributions, uniform_weights
from hf_mass.lm.binding import deterministic
from hf_mass.lm.encoding import Row
from hf_mass.lm.generation import Sampling, row_seed
from hf_mass.methods.inner import InnerAdapter, InnerProblem
from hf_mass.methods.judging import judge
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.methods.scorer import Scorer
from hf_mass.tasks.formats import ParseFailure
from hf_mass.tasks.task import Task
from hf_mass.training.meta_adapt_config import MetaAdaptConfig


@dataclass(frozen=True)
class OuterStep:
    """The outcome of one outer step for N tasks."""

    rewards: Tensor  # generator reward of each sample [N, m]; NaN for all samples of a skipped task
    weights: Tensor  # s [N, m]
    attributions: Tensor  # ∂L_outer/∂s [N, m]
    usable: Tensor  # [N, m] bool
    scorer_gradient: list[Tensor]  # Σ_n ∂L_n/∂η for each scorer parameter (a sum over tasks, not a mean)
    generator_gradient: dict[str, Tensor]  # the same for the generator's, by name; empty for γ = 0
    # Name → values, one per task or sample, averaged by whoever logs them. Attributions are −∂L_outer/∂s there, as
    # everywhere that people look: positive = helpful.
    metrics: dict[str, list[float]] = field(default_factory=dict)


class OuterLoop:
    """Computes `OuterStep`s with a `MassModel`, whose scorer and adapters are read, never stepped."""

    def __init__(self, mass: MassModel, config: MetaAdaptConfig) -> None:
        self.mass, self.config = mass, config

    def __call__(
        self, tasks: Sequence[Task], samples: Sequence[Sequence[AuxiliarySample]], step: int, detailed: bool
    ) -> OuterStep:
        """One outer step.

        Args:
            tasks: N tasks.
            samples: m samples of each.
            step: Global step, for the seeds of sampled solutions.
            detailed: Also measure what costs extra passes (losses after the inner loop, unadapted reward).
        """
        with deterministic(self.mass.model):
            problem = self.mass.adapter.problem(tasks, samples, row_seed("dropout", self.config.seed, step))
            weights, trajectory = self._adapt(problem)
            adapted = self.mass.adapter.lora.start(len(tasks)) if trajectory is None else trajectory.adapted
            valid = finite_tasks(problem, trajectory)
            outer, metrics = self._outer_loss(problem, adapted, valid, step)
            attributions = torch.zeros(problem.usable.shape, device=self.mass.device)
            generator: dict[str, Tensor] = {}
            metrics["outer_loss"] = [0.0] * int(valid.sum())  # of tasks whose solutions all agree
            if outer is not None:
                first, raw = self._differentiate(problem, trajectory, adapted, outer)
                # Adapted weights can be finite and yet so large that the model overflows on them.
                finite = valid & first.losses.isfinite() & raw.isfinite().all(1) & _finite_tree(first.params)
                generator = self._generator_gradient(trajectory, adapted, outer, first, finite, valid)
                valid = finite
                attributions = torch.where(valid[:, None], raw, torch.zeros_like(raw))
                metrics["outer_loss"] = first.losses[valid].tolist()
            scorer = self._scorer_gradient(weights, attributions)
            weights = weights.detach()
            rewards = self._rewards(weights, attributions, problem.usable)
            rewards[~valid] = torch.nan
            metrics.update(self._metrics(problem, trajectory, weights, attributions, valid, detailed, step))
        return OuterStep(rewards, weights, attributions, problem.usable, scorer, generator, metrics)

    def _adapt(self, problem: InnerProblem) -> tuple[Tensor, Trajectory | None]:
        """(s [N, m], the inner loop under s): s with a graph to the scorer's parameters where it is trained.

        Where no task of the batch has a usable sample there is nothing to step on: the adapted weights are θ_0.
        """
        uniform = uniform_weights(problem.usable)
        if problem.loss is None:
            return uniform, None
        trajectory = self.mass.adapter.run(problem, uniform)
        if not self.config.train_scorer:
            return uniform, trajectory
        weights = self.mass.scorer(self.mass.features(problem, trajectory), problem.usable)
        return weights, trajectory.reweighted(problem.to_rows(weights.detach()))

    def _differentiate(
        self, problem: InnerProblem, trajectory: Trajectory | None, adapted: Tree, outer: WeightedLoss
    ) -> tuple[OuterGradient, Tensor]:
        """(L_outer of each task with ∇L_outer(θ') and ∂L_outer/∂φ, ∂L_outer/∂s [N, m]), from one pass of each kind."""
        also = list(trainable_parameters(self.mass.model).values()) if self.config.solve_coefficient else []
        if trajectory is None:
            with self.mass.adapter.lora.inactive():
                return outer.gradient(adapted, also), torch.zeros(problem.usable.shape, device=self.mass.device)
        meta = self.mass.adapter.meta_gradient(trajectory, outer, also)
        return OuterGradient(meta.outer_losses, meta.outer_gradient, meta.also), problem.to_samples(meta.attributions)

    def _generator_gradient(
        self,
        trajectory: Trajectory | None,
        adapted: Tree,
        outer: WeightedLoss,
        first: OuterGradient,
        valid: Tensor,
        summed: Tensor,
    ) -> dict[str, Tensor]:
        """∂L_outer/∂φ of the valid tasks; if other tasks are in the sum of `first`, it is made anew."""
        if self.config.solve_coefficient == 0:
            return {}
        if valid.equal(summed):
            total = dict(zip(trainable_parameters(self.mass.model), first.also, strict=True))
        else:
            total = direct_gradient(self.mass.adapter, outer, adapted, valid)
        if self.config.solve_gradient == "full" and trajectory is not None:
            total = trees.add(total, inner_steps_gradient(self.mass.adapter, trajectory, first.params, valid))
        return total

    # -- outer losses -------------------------------------------------------------------------------------------------

    def _outer_loss(
        self, problem: InnerProblem, adapted: Tree, valid: Tensor, step: int
    ) -> tuple[WeightedLoss | None, dict[str, list[float]]]:
        """The outer loss over the valid tasks; None if it has no rows (all tasks skipped, or all solutions agree)."""
        index = valid.nonzero()[:, 0].tolist()
        if not index:
            return None, {}
        if self.config.outer_loss == "gold":
            return self.mass.adapter.gold_loss(problem.tasks, index), {}
        return self._verifier_loss(problem, adapted, index, step)

    def _verifier_loss(
        self, problem: InnerProblem, adapted: Tree, index: list[int], step: int
    ) -> tuple[WeightedLoss | None, dict[str, list[float]]]:
        """GRPO surrogate at ratio one: (1/k) Σ_j A_j · mean NLL of solution j, A the group-normalised rewards.

        Tasks whose k solutions all earn the same have no advantage: they are left out of the rows and counted.
        """
        k, encoder, tasks = self.config.num_solutions, self.mass.encoder, problem.tasks
        owners = [n for n in index for _ in range(k)]
        prompts = {n: encoder.solver_prompt_ids(tasks[n]) for n in index}
        seeds = [
            row_seed("outer", self.config.seed, step, tasks[n].id, tasks[n].problem, j) for n in index for j in range(k)
        ]
        sampling = Sampling(self.config.max_solution_length, self.config.solution_temperature)
        ids = self.mass.adapter.complete(adapted, [prompts[n] for n in owners], owners, sampling, seeds)
        texts = encoder.tokenizer.batch_decode(ids, skip_special_tokens=True)
        answers = judge(encoder.format, [tasks[n] for n in owners], texts, always=True)
        rewards = torch.tensor([answer.reward() for answer in answers]).view(-1, k)  # [tasks, k]
        spread = rewards.std(1, keepdim=True)
        advantages = ((rewards - rewards.mean(1, keepdim=True)) / (spread + 1e-4)).flatten()
        metrics = {"reward/adapted": rewards.mean(1).tolist(), "tasks/agreeing": (spread[:, 0] == 0).float().tolist()}
        rows = [r for r in range(len(owners)) if advantages[r] != 0]
        if not rows:
            return None, metrics
        loss = self.mass.adapter.token_loss([Row(owners[r], prompts[owners[r]], ids[r]) for r in rows])
        return WeightedLoss(loss, advantages[rows].to(self.mass.device) / k), metrics

    # -- what generator and scorer learn from -------------------------------------------------------------------------

    def _scorer_gradient(self, weights: Tensor, attributions: Tensor) -> list[Tensor]:
        """∇_η Σ_n L_n = Σ (∂L/∂s) ∇_η s: exact, because L depends on η through the weights alone."""
        parameters = list(self.mass.scorer.parameters())
        if not weights.requires_grad:
            return [torch.zeros_like(p) for p in parameters]
        gradients = torch.autograd.grad((attributions.detach() * weights).sum(), parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]

    def _rewards(self, weights: Tensor, attributions: Tensor, usable: Tensor) -> Tensor:
        """Generator rewards [N, m]; unusable samples get the lowest reward of their group."""
        logit = self.config.generator_reward == "logit"
        rewards = logit_attributions(attributions, weights) if logit else -attributions
        lowest = rewards.masked_fill(~usable, torch.inf).min(1, keepdim=True).values
        lowest = torch.where(lowest.isfinite(), lowest, torch.zeros_like(lowest))
        return torch.where(usable, rewards, lowest)

    def _metrics(
        self,
        problem: InnerProblem,
        trajectory: Trajectory | None,
        weights: Tensor,
        attributions: Tensor,
        valid: Tensor,
        detailed: bool,
        step: int,
    ) -> dict[str, list[float]]:
        entropy = -(weights * weights.clamp(min=1e-12).log()).sum(1)
        usable = problem.usable
        metrics = {
            "samples/parse_rate": usable.float().mean(1).tolist(),
            "tasks/skipped": (~valid).float().tolist(),
            "weights/entropy": entropy[valid].tolist(),
            "attribution/mean": (-attributions[usable]).tolist(),
            "attribution/std": [
                float(v[u].std()) if int(u.sum()) > 1 else 0.0 for v, u in zip(attributions, usable, strict=True)
            ],
        }
        for reason in get_args(ParseFailure):
            shares = [sum(s.reason == reason for s in group) / len(group) for group in problem.samples]
            metrics[f"samples/{reason}"] = shares
        if trajectory is not None:
            metrics["inner_loss/before"] = _inner_objectives(problem, trajectory.losses[0], weights)
        if detailed and trajectory is not None:
            with self.mass.adapter.lora.inactive():
                metrics["inner_loss/after"] = _inner_objectives(problem, trajectory.final_losses(), weights)
        if detailed and self.config.outer_loss == "verifier":
            temperature = self.config.solution_temperature
            answers = self.mass.solve(problem.tasks, temperature=temperature, seed=step, always=True)
            metrics["reward/unadapted"] = [answer.reward() for answer in answers]
        return metrics


def _inner_objectives(problem: InnerProblem, losses: Tensor, weights: Tensor) -> list[float]:
    """Σ_i s_i ℓ_i of every task that has a usable sample: what its inner loop descends."""
    totals = (problem.to_samples(losses) * weights).sum(1)
    return totals[problem.usable.any(1) & totals.isfinite()].tolist()


def finite_tasks(problem: InnerProblem, trajectory: Trajectory | None) -> Tensor:
    """[N] bool: tasks whose inner losses and adapted weights are all finite (tasks do not touch each other's)."""
    finite = torch.ones(len(problem.tasks), dtype=torch.bool, device=problem.usable.device)
    if trajectory is not None:
        for losses in trajectory.losses:
            finite[trajectory.loss.row_task[~losses.isfinite()]] = False
        finite &= _finite_tree(trajectory.adapted)
    return finite


def _finite_tree(tree: Tree) -> Tensor:
    """[N] bool of leaves [N, ...]."""
    return torch.stack([leaf.isfinite().flatten(1).all(1) for leaf in tree.values()]).all(0)


# -- what the generator learns from the outer loss itself --------------------------------------------------------------


def direct_gradient(adapter: InnerAdapter, outer: WeightedLoss, params: Tree, valid: Tensor) -> dict[str, Tensor]:
    """Σ_n ∂L_n/∂φ at fixed adapted weights, by name, over the parameters of the model that require gradients.

    `valid` [N] says which tasks count; the others' numbers may be NaN.
    """
    parameters = trainable_parameters(adapter.model)
    with adapter.lora.inactive():
        _, _, gradients = weighted_gradient(outer.loss, params, outer.coefficients, list(parameters.values()), valid)
    return dict(zip(parameters, gradients, strict=True))


def inner_steps_gradient(
    adapter: InnerAdapter, trajectory: Trajectory, outer_gradient: Tree, valid: Tensor
) -> dict[str, Tensor]:
    """What the inner steps add to `direct_gradient`: Σ_k ∂/∂φ Σ_r s_r ⟨∇_θ ℓ_r(θ_k; φ), ḡ_k⟩, from ∇L_outer(θ').

    Raises:
        UnsupportedModelError: If an operation of the model cannot be differentiated twice.
    """
    parameters = trainable_parameters(adapter.model)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    optimizer, params_bar = trajectory.optimizer, outer_gradient
    state_bar = trees.zeros_like(optimizer.init(trajectory.adapted))
    with adapter.lora.inactive():
        for step in range(trajectory.num_steps - 1, -1, -1):
            gradient_bar, params_bar, state_bar = optimizer.pullback(
                trajectory.gradients[step], trajectory.optimizer_states[step], step, params_bar, state_bar
            )
            loss, point, also = trajectory.loss.at_step(step), trajectory.states[step], list(parameters.values())
            curvature, _, mixed = hessian_product(loss, point, trajectory.weights, gradient_bar, also, valid)
            total = {name: sum_ + part for (name, sum_), part in zip(total.items(), mixed, strict=True)}
            params_bar = trees.add(params_bar, curvature)
    return total


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that require gradients, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class ScorerCallback(TrainerCallback):
    """The Trainer clips and clears the model's gradients; this does it for the scorer's, which is not part of it."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clip the scorer's gradient to `max_grad_norm`, apart from the generator's."""
        if args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.scorer.parameters(), args.max_grad_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clear the scorer's gradient after the step."""
        self.scorer.zero_grad()
