"""Adapting N tasks at once: rows from samples, the inner loop, and the outer losses at the adapted weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from hf_mass.core.inner_loop import InnerLoop, Trajectory
from hf_mass.core.losses import MixtureLoss, OuterLoss, WeightedLoss, sample_gradients
from hf_mass.core.memory import FAST, MemoryPlan, choose_plan
from hf_mass.core.meta_gradients import MetaGradient, get_rule
from hf_mass.core.optimizers import make_optimizer
from hf_mass.core.token_loss import TokenLoss
from hf_mass.core.trees import Tree
from hf_mass.core.weights import attribution_weights, matching_weights, uniform_weights
from hf_mass.errors import DataError
from hf_mass.lm.binding import BoundLora, deterministic
from hf_mass.lm.device_memory import GraphBytes, free_bytes, graph_bytes, pass_bytes
from hf_mass.lm.encoding import Row, TextEncoder
from hf_mass.lm.generation import Sampling, complete
from hf_mass.lm.sharing import sharing_of
from hf_mass.methods.mass_settings import MassConfig
from hf_mass.methods.samples import AuxiliarySample, usable_mask
from hf_mass.tasks.task import Task

logger = logging.getLogger(__name__)
KEPT_APART = 6.0
"""For K = 1: by what factor the tokens must become fewer for rows to share a sequence. Rows apart have gradients of
their own, of which every round of weighing makes use without another pass; sequences take two passes in each."""


@dataclass(frozen=True)
class InnerProblem:
    """What N tasks train on in the inner loop."""

    tasks: Sequence[Task]
    samples: Sequence[Sequence[AuxiliarySample]]  # m auxiliary samples of each
    loss: TokenLoss | None  # row losses of the usable samples, R rows; None where no task has a usable sample
    usable: Tensor  # [N, m] bool: has a row
    rows: Sequence[Row] = ()  # the text of these rows

    def to_rows(self, values: Tensor) -> Tensor:
        """[N, m] → [R]."""
        return values[self.usable]

    def to_samples(self, rows: Tensor) -> Tensor:
        """[R] → [N, m], zero for samples without a row."""
        values = rows.new_zeros(self.usable.shape)
        values[self.usable] = rows
        return values


class InnerAdapter:
    """Carries out the inner loop of many tasks on one PEFT model.

    The model must be in evaluation mode and its generator adapter active; `inner` names the adapter that is adapted.

    Args:
        model: The PEFT model.
        encoder: Renders tasks.
        config: Inner-loop settings.
        inner: Name of the inner adapter.
    """

    def __init__(self, model: PeftModel, encoder: TextEncoder, config: MassConfig, inner: str = "inner") -> None:
        self.model, self.encoder, self.config = model, encoder, config
        self.lora = BoundLora(model, inner)
        loop = config.inner
        moments = (loop.momentum, loop.betas, loop.epsilon, loop.weight_decay)
        self.inner_loop = InnerLoop(loop.steps, make_optimizer(loop.optimizer, loop.learning_rate, *moments))
        self.memory: MemoryPlan | None = None  # of the last pass planned
        self._graph_bytes: GraphBytes | None = None
        self._sweeps: bool | None = None  # known once it mattered

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def token_loss(
        self,
        rows: Sequence[Row],
        reduction: str = "mean",
        dropout: float = 0.0,
        seed: int = 0,
        whole: bool = False,
        gain: float = 1.25,
    ) -> TokenLoss:
        """Row losses of text under the inner adapter's updates, in passes as large as the memory setting allows.

        `whole` keeps a CPU, too, from cutting passes that would fit: a mixture over rows takes one pass more if cut.
        Rows of a task that begin alike share a sequence where that makes their tokens fewer by the factor `gain`.
        """
        batch = self.encoder.batch(rows, self.device)
        with deterministic(self.model), self.lora.inactive():
            sharing = sharing_of(self.model)._replace(gain=gain)
        loss = TokenLoss(self.model, self.lora.function, batch, None, reduction, FAST, dropout, seed, sharing)
        loss.use(self._plan(loss, whole))
        return loss

    def _plan(self, loss: TokenLoss, whole: bool) -> MemoryPlan:
        inner, start = self.config.inner, self.lora.start()
        if self._graph_bytes is None:
            with deterministic(self.model), self.lora.inactive():
                self._graph_bytes = graph_bytes(loss, start, second_order=inner.steps > 1)
        rows, length = len(loss.lengths), int(loss.lengths.max())
        row_bytes = self._graph_bytes.row(length)
        tree_bytes = sum(leaf[0].nbytes for leaf in start.values())
        preference = inner.memory if self.lora.function.layers or inner.memory == "lean" else "fast"
        free, enough = free_bytes(self.device), None if whole else pass_bytes(self.device)
        sizes = rows, row_bytes, tree_bytes, free, inner.microbatch, enough
        plan = choose_plan(preference, *sizes, inner.steps > 1, lambda: self._can_sweep(loss, start))
        if self.memory is None or plan.checkpoint != self.memory.checkpoint:
            logger.info("Inner loop: %s.", plan.reason)
        self.memory = plan
        return plan

    def _can_sweep(self, loss: TokenLoss, start: Tree) -> bool:
        if self._sweeps is None:
            with deterministic(self.model), self.lora.inactive():
                self._sweeps = loss.sweeps(start)
        return self._sweeps

    def problem(
        self, tasks: Sequence[Task], samples: Sequence[Sequence[AuxiliarySample]], seed: int = 0
    ) -> InnerProblem:
        """Rows for the usable samples of each task; `seed` draws the dropout masks.

        Raises:
            DataError: If the samples are not one group for each task, all of one size.
        """
        encoder, sizes = self.encoder, [len(group) for group in samples]
        if len(sizes) != len(tasks) or len(set(sizes)) != 1 or not sizes[0]:
            raise DataError(
                f"samples has groups of {sizes} for {len(tasks)} tasks; give one group for each task, all of the same "
                "size m ≥ 1. Fill a smaller group up with samples that have a `reason`: they get weight 0."
            )
        rows = [
            encoder.inner_row(n, task, sample.question, sample.answer)
            for n, (task, group) in enumerate(zip(tasks, samples, strict=True))
            for sample in group
            if sample.usable
        ]
        gain = KEPT_APART if self.config.inner.steps == 1 else 1.25
        loss = self.token_loss(rows, dropout=self.config.inner.dropout, seed=seed, gain=gain) if rows else None
        return InnerProblem(tasks, samples, loss, usable_mask(samples, self.device), rows)

    def run(self, problem: InnerProblem, weights: Tensor) -> Trajectory:
        """The inner loop under weights s [N, m].

        Raises:
            DataError: If no task has a usable sample.
        """
        if problem.loss is None:
            raise DataError("No task of the batch has a usable auxiliary sample; there is nothing to adapt on.")
        with self.lora.inactive():
            start = self.lora.start(len(problem.tasks))
            return self.inner_loop.run(problem.loss, start, problem.to_rows(weights))

    def sample_losses(self, problem: InnerProblem, trajectory: Trajectory | None) -> Tensor:
        """ℓ_i(θ_k) [K + 1, N, m] float32 on the CPU: before the first step and after each; NaN where unusable."""
        steps = 1 if trajectory is None else trajectory.num_steps + 1
        losses = torch.full((steps, *problem.usable.shape), float("nan"))
        if trajectory is not None:
            with self.lora.inactive():
                rows = torch.stack([*trajectory.losses, trajectory.final_losses()])  # [K + 1, R]
            losses[:, problem.usable.cpu()] = rows.float().cpu()
        return losses

    def meta_gradient(self, trajectory: Trajectory, outer: OuterLoss, also: Sequence[Tensor] = ()) -> MetaGradient:
        """∂L_outer/∂s of every row, by the configured rule, and ∂L_outer/∂φ for further parameters φ of the model."""
        with self.lora.inactive():
            return get_rule(self.config.inner.rule)(trajectory, outer, also=also)

    def complete(
        self, params: Tree, prompts: Sequence[list[int]], row_task: Sequence[int], sampling: Sampling, seeds: list[int]
    ) -> list[list[int]]:
        """Completions at adapted weights: prompt r at the weights of task `row_task[r]`."""
        with self.lora.applied(params, torch.tensor(row_task, device=self.device)):
            return complete(self.model, self.encoder.tokenizer, prompts, sampling, seeds)

    # -- outer losses -------------------------------------------------------------------------------------------------

    def gold_loss(self, tasks: Sequence[Task], numbers: Sequence[int] | None = None) -> WeightedLoss:
        """Cross-entropy on the gold solutions of tasks, or of those of these numbers.

        Raises:
            DataError: If a task has neither a solution nor an answer.
        """
        rows = []
        for n in range(len(tasks)) if numbers is None else numbers:
            task = tasks[n]
            gold = task.solution if task.solution is not None else task.answer
            if gold is None:
                raise DataError(
                    f"Task {task.id!r} has neither solution nor answer, which outer_loss='gold' needs. Give a gold "
                    "column, or use outer_loss='verifier' with a verifier of your own."
                )
            rows.append(Row(n, self.encoder.solver_prompt_ids(task), self.encoder.answer_ids(gold)))
        return WeightedLoss(self.token_loss(rows), torch.ones(len(rows), device=self.device))

    def demonstration_loss(self, tasks: Sequence[Task], derivations: Sequence[Sequence[str]]) -> OuterLoss:
        """−Σ_j log Σ_{r ∈ U} p(r, y_j | x_j) / J over a task's J demonstrations (x_j, y_j).

        A solution may state a derivation r before its answer, and a demonstration shows the answer only. U are
        candidate derivations, such as those that the task's own samples propose: a demonstration counts as explained
        as far as any of them leads to it. With U = {""} this is the plain loss on the answers. Where a prompt shows
        the task's demonstrations, that of x_j shows all but the j-th. `derivations` are U of each task, not empty.

        Raises:
            DataError: If a task has no demonstrations.
        """
        rows, groups, weights = list[Row](), list[int](), list[float]()
        encoder, device = self.encoder, self.device
        for n, (task, candidates) in enumerate(zip(tasks, derivations, strict=True)):
            if not task.demonstrations:
                raise DataError(
                    f"Task {task.id!r} has no demonstrations to attribute samples to. Use weigh_by='scorer' or "
                    "'uniform' for such tasks."
                )
            for j in range(len(task.demonstrations)):
                for derivation in candidates:
                    rows.append(encoder.demonstration_row(n, task, j, derivation))
                    groups.append(len(weights))
                weights.append(1 / len(task.demonstrations))
        mixed = len(rows) > len(weights)  # else an event has one derivation, and needs no pass that finds its share
        loss = self.token_loss(rows, reduction="sum", whole=mixed)
        shares = torch.tensor(weights, device=device)
        return MixtureLoss(loss, torch.tensor(groups, device=device), shares) if mixed else WeightedLoss(loss, shares)

    def proposed_derivations(self, task: Task, group: Sequence[AuxiliarySample]) -> list[str]:
        """Distinct derivations of a task's usable samples, in order; [""] where there are none."""
        if self.encoder.few_shot_for(task):
            return [""]
        solutions = [self.encoder.format.split_solution(sample.answer) for sample in group if sample.usable]
        return list(dict.fromkeys(parts.rationale for parts in solutions if parts)) or [""]

    # -- weights ------------------------------------------------------------------------------------------------------

    def demonstration_attributions(self, problem: InnerProblem, trajectory: Trajectory) -> Tensor:
        """∂L/∂s [N, m] with the outer loss on the tasks' own demonstrations."""
        proposed = list(map(self.proposed_derivations, problem.tasks, problem.samples))
        outer = self.demonstration_loss(problem.tasks, proposed)
        return problem.to_samples(self.meta_gradient(trajectory, outer).attributions)

    def weigh_by_demonstrations(self, problem: InnerProblem, start: Trajectory) -> tuple[Tensor, Tensor, Trajectory]:
        """(weights [N, m], first-round attributions [N, m], trajectory): samples weighed with no label beyond the task.

        Round 1 takes attributions at equal weights; each further round adds those at the weights reached so far, so
        that what is explained already no longer counts. The weights are the softmax of the summed, standardised
        attributions (a mirror-descent step on the simplex each round).
        """
        summed = torch.zeros(problem.usable.shape, device=self.device)
        trajectory, first, weights = start, None, uniform_weights(problem.usable)
        for _ in range(self.config.attribution.rounds):
            attributions = self.demonstration_attributions(problem, trajectory)
            first = attributions if first is None else first
            scale = first.abs().amax(1, keepdim=True).clamp(min=torch.finfo(first.dtype).tiny)
            summed = summed + attributions / scale
            weights = attribution_weights(summed, problem.usable, self.config.attribution.temperature)
            trajectory = trajectory.reweighted(problem.to_rows(weights))
        assert first is not None
        return weights, first, trajectory

    def weigh_by_matching(self, problem: InnerProblem) -> tuple[Tensor, Tensor, Trajectory]:
        """(weights [N, m], attributions [N, m], trajectory): samples weighed as a set, with no label beyond the task.

        The weights are those w ≥ 0 for which Σ_i w_i ∇ℓ_i(θ_0) comes nearest to the gradient g of the loss on the
        task's own demonstrations, each behind the others. A task all of whose samples point away from it has zeros.
        The attributions are those of a first step of SGD from no weights at all: −α ⟨∇ℓ_i(θ_0), g⟩.
        """
        assert problem.loss is not None
        start, shares = self.lora.start(len(problem.tasks)), problem.loss.shares
        derivations = list(map(self.proposed_derivations, problem.tasks, problem.samples))
        with self.lora.inactive():
            target = self.demonstration_loss(problem.tasks, derivations).gradient(start).params
            # Rows in a sequence have no gradients of their own; those apart already need not be made again.
            apart = self.token_loss(problem.rows, gain=math.inf) if shares else problem.loss.at_step(0)
            first = sample_gradients(apart, start)
        dtype = next(iter(target.values())).dtype  # float64 where the base is
        weights, products = (torch.zeros(problem.usable.shape, dtype=dtype, device=self.device) for _ in range(2))
        for n in range(len(problem.tasks)):
            rows = (apart.row_task == n).nonzero()[:, 0]
            flat = {name: leaf[rows].flatten(1) for name, leaf in first[1].items()}
            gram = torch.stack([x @ x.T for x in flat.values()]).sum(0)
            along = torch.stack([x @ target[name][n].flatten() for name, x in flat.items()]).sum(0)
            products[n, problem.usable[n]] = along
            if gram.isfinite().all() and along.isfinite().all():
                weights[n, problem.usable[n]] = matching_weights(gram, along)
        with self.lora.inactive():
            kept = None if shares else first
            trajectory = self.inner_loop.run(problem.loss, start, problem.to_rows(weights), kept)
        return weights, -self.config.inner.learning_rate * products, trajectory
