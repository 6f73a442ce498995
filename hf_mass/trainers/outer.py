"""The outer step of MASS for the tasks of one process: adapt, judge the adapted weights, attribute the judgement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_mass.core.inner_loop import Trajectory
from hf_mass.core.losses import WeightedLoss
from hf_mass.core.weights import logit_attributions, uniform_weights
from hf_mass.models.adaptation import InnerProblem
from hf_mass.models.binding import deterministic
from hf_mass.models.encoding import Row
from hf_mass.models.generation import Sampling, row_seed
from hf_mass.models.mass_model import MassModel
from hf_mass.models.samples import AuxiliarySample
from hf_mass.tasks.task import Task
from hf_mass.trainers.generator_gradient import generator_gradient
from hf_mass.trainers.meta_adapt_config import MetaAdaptConfig


@dataclass(frozen=True)
class OuterStep:
    """What one outer step found for N tasks.

    Args:
        rewards: Generator reward of each sample [N, m]; NaN for all samples of a skipped task.
        weights: s [N, m].
        attributions: ∂L_outer/∂s [N, m].
        usable: [N, m] bool.
        scorer_gradient: Σ_n ∂L_n/∂η for each scorer parameter (a sum over tasks, not a mean).
        generator_gradient: Σ_n ∂L_n/∂φ for each trainable parameter of the generator, by name; empty for γ = 0.
        metrics: Name → values, one per task or sample, averaged by whoever logs them.
    """

    rewards: Tensor
    weights: Tensor
    attributions: Tensor
    usable: Tensor
    scorer_gradient: list[Tensor]
    generator_gradient: dict[str, Tensor]
    metrics: dict[str, list[float]] = field(default_factory=dict)


class OuterLoop:
    """Computes `OuterStep`s with a `MassModel`.

    Args:
        mass: The model; its scorer and its adapters are read, never stepped.
        config: Settings.
    """

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
            problem = self.mass.adapter.problem(tasks, samples)
            if problem.loss is None:
                return self._nothing_usable(problem)
            uniform = self.mass.adapter.run(problem, uniform_weights(problem.usable))
            weights = self._weights(problem, uniform)
            trajectory = uniform.reweighted(problem.to_rows(weights.detach()))
            kept = finite_tasks(problem, trajectory)
            outer, metrics = self._outer_loss(problem, trajectory, kept, step)
            attributions = torch.zeros(problem.usable.shape, device=weights.device)
            generator: dict[str, Tensor] = {}
            if outer is not None:
                meta = self.mass.adapter.meta_gradient(trajectory, outer)
                raw = problem.to_samples(meta.attributions)
                attributions = torch.where(kept[:, None], raw, torch.zeros_like(raw)).float()
                metrics["outer_loss"] = meta.outer_losses[kept].tolist()
                if self.config.solve_coefficient > 0:
                    full = self.config.solve_gradient == "full"
                    generator = generator_gradient(self.mass.adapter, trajectory, outer, meta, full)
            scorer = self._scorer_gradient(weights, attributions)
            rewards = self._rewards(weights.detach(), attributions, problem.usable)
            rewards[~kept] = torch.nan
            metrics.update(self._metrics(problem, trajectory, weights.detach(), attributions, kept, detailed, step))
        return OuterStep(rewards, weights.detach(), attributions, problem.usable, scorer, generator, metrics)

    def _weights(self, problem: InnerProblem, uniform: Trajectory) -> Tensor:
        """s [N, m], with a graph to the scorer's parameters where it is trained."""
        if not self.config.train_scorer:
            return uniform_weights(problem.usable)
        return self.mass.scorer(self.mass.features(problem, uniform), problem.usable)

    def _nothing_usable(self, problem: InnerProblem) -> OuterStep:
        zeros = torch.zeros(problem.usable.shape, device=self.mass.device)
        gradient = [torch.zeros_like(p) for p in self.mass.scorer.parameters()]
        return OuterStep(zeros, zeros, zeros, problem.usable, gradient, {}, {"samples/parse_rate": [0.0]})

    # -- outer losses ---------------------------------------------------------------------------------------------------

    def _outer_loss(
        self, problem: InnerProblem, trajectory: Trajectory, kept: Tensor, step: int
    ) -> tuple[WeightedLoss | None, dict[str, list[float]]]:
        """The outer loss over the tasks kept; None where it has no rows (all tasks skipped, or all solutions agree)."""
        index = kept.nonzero()[:, 0].tolist()
        if self.config.outer_loss == "gold":
            if not index:
                return None, {}
            rows = [self._gold_row(n, problem.tasks[n]) for n in index]
            loss = self.mass.adapter.token_loss(rows)
            return WeightedLoss(loss, torch.ones(len(rows), device=self.mass.device)), {}
        return self._verifier_loss(problem, trajectory, index, step)

    def _gold_row(self, n: int, task: Task) -> Row:
        encoder = self.mass.encoder
        gold = task.solution if task.solution is not None else str(task.answer)
        return Row(n, encoder.solver_prompt_ids(task), encoder.answer_ids(gold))

    def _verifier_loss(
        self, problem: InnerProblem, trajectory: Trajectory, index: list[int], step: int
    ) -> tuple[WeightedLoss | None, dict[str, list[float]]]:
        """GRPO surrogate at ratio one: (1/k) Σ_j A_j · mean NLL of solution j, A the group-normalised rewards.

        Tasks whose k solutions all earn the same have no advantage: they are left out of the rows and counted.
        """
        k, encoder = self.config.num_solutions, self.mass.encoder
        if not index:
            return None, {}
        prompts = {n: encoder.solver_prompt_ids(problem.tasks[n]) for n in index}
        owners = [n for n in index for _ in range(k)]
        ids = self.mass.adapter.complete(
            trajectory.adapted,
            [prompts[n] for n in owners],
            owners,
            Sampling(self.config.max_solution_length, self.config.solution_temperature),
            [
                row_seed("outer", self.config.seed, step, problem.tasks[n].id, problem.tasks[n].problem, j)
                for n in index
                for j in range(k)
            ],
        )
        texts = encoder.tokenizer.batch_decode(ids, skip_special_tokens=True)
        judged = self.mass.judge([problem.tasks[n] for n in owners], texts, always=True)
        rewards = torch.tensor([float(solution.reward or 0.0) for solution in judged]).view(-1, k)  # [kept, k]
        spread = rewards.std(1, keepdim=True)
        advantages = ((rewards - rewards.mean(1, keepdim=True)) / (spread + 1e-4)).flatten()
        metrics = {"reward/adapted": rewards.mean(1).tolist(), "tasks/agreeing": (spread[:, 0] == 0).float().tolist()}
        chosen = [r for r in range(len(owners)) if advantages[r] != 0]
        if not chosen:
            return None, metrics
        loss = self.mass.adapter.token_loss([Row(owners[r], prompts[owners[r]], ids[r]) for r in chosen])
        return WeightedLoss(loss, advantages[chosen].to(self.mass.device) / k), metrics

    # -- what generator and scorer learn from -------------------------------------------------------------------------

    def _scorer_gradient(self, weights: Tensor, attributions: Tensor) -> list[Tensor]:
        """∇_η Σ_n L_n = Σ (∂L/∂s) ∇_η s: exact, because L depends on η through the weights alone."""
        parameters = list(self.mass.scorer.parameters())
        if not weights.requires_grad:
            return [torch.zeros_like(p) for p in parameters]
        surrogate = (attributions.detach() * weights).sum()
        gradients = torch.autograd.grad(surrogate, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]

    def _rewards(self, weights: Tensor, attributions: Tensor, usable: Tensor) -> Tensor:
        """Generator rewards [N, m]; unusable samples get the lowest reward of their group."""
        if self.config.generator_reward == "logit":
            rewards = logit_attributions(attributions, weights)
        else:
            rewards = -attributions
        lowest = rewards.masked_fill(~usable, torch.inf).min(1, keepdim=True).values
        lowest = torch.where(lowest.isfinite(), lowest, torch.zeros_like(lowest))
        return torch.where(usable, rewards, lowest)

    def _metrics(
        self,
        problem: InnerProblem,
        trajectory: Trajectory,
        weights: Tensor,
        attributions: Tensor,
        kept: Tensor,
        detailed: bool,
        step: int,
    ) -> dict[str, list[float]]:
        entropy = -(weights * weights.clamp(min=1e-12).log()).sum(1)
        usable = problem.usable
        metrics = {
            "samples/parse_rate": usable.float().mean(1).tolist(),
            "tasks/skipped": (~kept).float().tolist(),
            "weights/entropy": entropy[kept].tolist(),
            "attribution/mean": attributions[usable].tolist(),
            "attribution/std": _deviations(attributions, usable),
            "inner_loss/before": trajectory.losses[0][torch.isfinite(trajectory.losses[0])].tolist(),
        }
        for reason in sorted({s.reason for group in problem.samples for s in group if s.reason}):
            count = [sum(s.reason == reason for s in group) / len(group) for group in problem.samples]
            metrics[f"samples/{reason}"] = count
        if detailed:
            with self.mass.adapter.lora.inactive():
                after = trajectory.final_losses()
            metrics["inner_loss/after"] = after[torch.isfinite(after)].tolist()
            if self.config.outer_loss == "verifier":
                tasks = list(problem.tasks)
                solved = self.mass.solve(tasks, temperature=self.config.solution_temperature, seed=step)
                assert isinstance(solved, list)
                metrics["reward/unadapted"] = [float(s.reward or 0.0) for s in solved]
        return metrics


def _deviations(values: Tensor, usable: Tensor) -> list[float]:
    return [float(v[u].std()) if int(u.sum()) > 1 else 0.0 for v, u in zip(values, usable, strict=True)]


def finite_tasks(problem: InnerProblem, trajectory: Trajectory) -> Tensor:
    """[N] bool: tasks whose inner losses and adapted weights are all finite. Tasks do not touch each other's numbers."""
    bad = torch.zeros(len(problem.tasks), dtype=torch.bool, device=problem.usable.device)
    for losses in trajectory.losses:
        bad[trajectory.loss.row_task[~torch.isfinite(losses)]] = True
    for leaf in trajectory.adapted.values():
        bad |= ~torch.isfinite(leaf).flatten(1).all(1)
    return ~bad
