"""The ways to attributions that `metagrad.py` compares, each from the same problem to the same numbers.

The problem: R rows with weights s are trained on for K steps of SGD, θ_{k+1} = θ_k − α Σ_r s_r ∇ℓ_r(θ_k), over the LoRA
matrices of a PEFT model with random weights; the outer loss is the mean loss of other rows at θ_K. A method returns the
attributions ∂L_outer/∂s [R]. Peers are written with PyTorch, PEFT and their own library alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.common import MethodUnavailable
from hf_mass.core.inner_loop import InnerLoop
from hf_mass.core.losses import WeightedLoss
from hf_mass.core.memory import FAST, LEAN
from hf_mass.core.meta_gradients import get_rule
from hf_mass.core.optimizers import SGD
from hf_mass.core.token_loss import IGNORED, TokenBatch, TokenLoss
from hf_mass.lm.binding import BoundLora

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """The shape of the problem, as the command line gives it.

    Args:
        intermediate: Width of the MLP; 0 for about 2.75 times the hidden size.
        microbatch: Rows of one pass, for every method that can; 0 for all rows.
        upcast: Take the weights of `dtype` to float32 (for a reference on the same weights).
    """

    hidden: int = 256
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 0
    vocabulary: int = 1000
    rank: int = 8
    rows: int = 12
    outer_rows: int = 6
    sequence: int = 128
    microbatch: int = 0
    learning_rate: float = 0.3
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    upcast: bool = False


@dataclass(frozen=True)
class Problem:
    """A model, the rows to train on with their weights, and the rows of the outer loss."""

    setting: Setting
    model: PeftModel
    lora: BoundLora
    inner: TokenBatch
    outer: TokenBatch
    weights: Tensor

    @property
    def outer_weights(self) -> Tensor:
        """The outer loss is a mean over its rows."""
        return torch.full_like(self.outer.row_task, 1, dtype=torch.float32) / len(self.outer)

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The LoRA matrices under the model's own names."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}


def build_model(setting: Setting) -> PeftModel:
    """A Llama with random weights, made on its device, and LoRA on all linear layers with a B that is not zero."""
    config = LlamaConfig(
        vocab_size=setting.vocabulary,
        hidden_size=setting.hidden,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        num_key_value_heads=setting.kv_heads,
        intermediate_size=setting.intermediate or int(setting.hidden * 2.75) // 8 * 8,
        max_position_embeddings=max(1024, setting.sequence),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(setting.seed)
    with torch.device(setting.device):
        base = AutoModelForCausalLM.from_config(config, dtype=DTYPES[setting.dtype])
        lora = LoraConfig(
            r=setting.rank, lora_alpha=2 * setting.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = get_peft_model(base, lora)
    if setting.upcast:
        model = model.float()
    generator = torch.Generator().manual_seed(setting.seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero would make the gradient of A, and half of the curvature, vanish
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def build_batch(setting: Setting, rows: int, seed: int) -> TokenBatch:
    """Right-padded rows of uneven lengths, the first one full; the last two thirds of each are its answer."""
    generator = torch.Generator().manual_seed(seed)
    length = setting.sequence
    ids = torch.randint(3, setting.vocabulary, (rows, length), generator=generator)
    cuts = torch.randint(0, max(1, length // 3), (rows, 1), generator=generator)
    cuts[0] = 0
    used = length - cuts
    column = torch.arange(length)[None]
    mask = (column < used).long()
    labels = torch.where((column >= used // 3) & (column < used), ids, IGNORED)
    task = torch.zeros(rows, dtype=torch.int64)
    return TokenBatch(*(x.to(setting.device) for x in (ids * mask, mask, labels, task)))


def build_problem(setting: Setting, model: PeftModel | None = None) -> Problem:
    """Everything that a method needs; the same at every call. `model` serves again where only the rows differ."""
    model = model if model is not None else build_model(setting)
    generator = torch.Generator().manual_seed(setting.seed + 2)
    weights = torch.rand(setting.rows, generator=generator) / setting.rows + 0.05
    return Problem(
        setting,
        model,
        BoundLora(model, "default"),
        build_batch(setting, setting.rows, setting.seed + 3),
        build_batch(setting, setting.outer_rows, setting.seed + 4),
        weights.to(setting.device),
    )


def warm_up_problem(problem: Problem) -> Problem:
    """The same model with short rows: runs all the code once and needs next to nothing."""
    return build_problem(replace(problem.setting, sequence=min(16, problem.setting.sequence)), problem.model)


# What a user of PEFT writes for plain training: shared by the baseline and by all peers.


def row_losses(model: nn.Module, batch: TokenBatch, params: dict[str, Tensor] | None = None) -> Tensor:
    """Mean negative log-likelihood of each row's answer [R], by the model's own LoRA matrices or by those given."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    output = model(**inputs) if params is None else functional_call(model, params, (), inputs)
    labels = batch.labels[:, 1:]
    nll = functional.cross_entropy(
        output.logits[:, :-1].float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return nll.view(labels.shape).sum(1) / (labels != IGNORED).sum(1)


def plain_gradient(
    problem: Problem, batch: TokenBatch, weights: Tensor, params: list[nn.Parameter]
) -> tuple[Tensor, list[Tensor]]:
    """(ℓ [R], ∂/∂θ Σ_r c_r ℓ_r), accumulated over microbatches."""
    values, total = [], [torch.zeros_like(parameter) for parameter in params]
    for rows in torch.arange(len(batch), device=weights.device).split(problem.setting.microbatch or len(batch)):
        losses = row_losses(problem.model, batch.select(rows))
        for sum_, gradient in zip(total, torch.autograd.grad((weights[rows] * losses).sum(), params), strict=True):
            sum_ += gradient
        values.append(losses.detach())
    return torch.cat(values), total


@contextmanager
def restored(params: list[nn.Parameter]) -> Iterator[None]:
    """Within this context the parameters may be changed in place; afterwards they are what they were."""
    before = [parameter.detach().clone() for parameter in params]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(params, before, strict=True):
                parameter.copy_(value)


def inner_steps(problem: Problem, steps: int, params: list[nn.Parameter]) -> list[list[Tensor]]:
    """Train the model's own LoRA matrices in place; returns θ_0 … θ_{K−1}."""
    states = []
    for _ in range(steps):
        states.append([parameter.detach().clone() for parameter in params])
        _, gradient = plain_gradient(problem, problem.inner, problem.weights, params)
        with torch.no_grad():
            for parameter, step in zip(params, gradient, strict=True):
                parameter.sub_(problem.setting.learning_rate * step)
    return states


def baseline(problem: Problem, steps: int) -> None:
    """K inner steps and the outer loss's gradient, first order: plain fine-tuning, no attributions."""
    params = list(problem.trainable.values())
    with restored(params):
        inner_steps(problem, steps, params)
        plain_gradient(problem, problem.outer, problem.outer_weights, params)


def baseline_checkpointed(problem: Problem, steps: int) -> None:
    """The same with the activation checkpointing of transformers."""
    # transformers renames "gradient" to "activation" here and warns about the old name
    noun = "activation" if hasattr(problem.model, "activation_checkpointing_enable") else "gradient"
    getattr(problem.model, f"{noun}_checkpointing_enable")({"use_reentrant": False})
    problem.model.train()  # it is off in evaluation mode; there is no dropout
    try:
        baseline(problem, steps)
    finally:
        problem.model.eval()
        getattr(problem.model, f"{noun}_checkpointing_disable")()


def create_graph(problem: Problem, steps: int) -> Tensor:
    """Reverse over reverse by hand: the whole inner loop in one graph."""
    weights = problem.weights.clone().requires_grad_()
    params: dict[str, Tensor] = dict(problem.trainable)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be differentiated twice
        for _ in range(steps):
            objective = (weights * row_losses(problem.model, problem.inner, params)).sum()
            gradients = torch.autograd.grad(objective, list(params.values()), create_graph=True)
            rate = problem.setting.learning_rate
            params = {name: x - rate * g for (name, x), g in zip(params.items(), gradients, strict=True)}
        outer = (problem.outer_weights * row_losses(problem.model, problem.outer, params)).sum()
        return torch.autograd.grad(outer, weights)[0]


def torchopt_functional(problem: Problem, steps: int) -> Tensor:
    """TorchOpt's functional SGD, differentiated through."""
    torchopt = _library("torchopt")
    weights = problem.weights.clone().requires_grad_()
    params: dict[str, Tensor] = dict(problem.trainable)
    optimizer = torchopt.FuncOptimizer(torchopt.sgd(lr=problem.setting.learning_rate))
    with sdpa_kernel(SDPBackend.MATH):
        for _ in range(steps):
            params = optimizer.step((weights * row_losses(problem.model, problem.inner, params)).sum(), params)
        outer = (problem.outer_weights * row_losses(problem.model, problem.outer, params)).sum()
        return torch.autograd.grad(outer, weights)[0]


def higher_functional(problem: Problem, steps: int) -> Tensor:
    """`higher`: a patched copy of the model and a differentiable SGD."""
    higher = _library("higher")
    weights = problem.weights.clone().requires_grad_()
    optimizer = torch.optim.SGD(problem.trainable.values(), lr=problem.setting.learning_rate)
    with sdpa_kernel(SDPBackend.MATH), higher.innerloop_ctx(problem.model, optimizer) as (patched, differentiable):
        for _ in range(steps):
            differentiable.step((weights * row_losses(patched, problem.inner)).sum())
        outer = (problem.outer_weights * row_losses(patched, problem.outer)).sum()
        return torch.autograd.grad(outer, weights)[0]


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever keeps a peer from loading is the reason that its row shows
        raise MethodUnavailable(f"import {name} fails: {type(error).__name__}: {error}") from error


def finite_difference(problem: Problem, steps: int, size: float = 1e-3) -> Tensor:
    """The adjoint recursion with central differences of losses and gradients in the place of exact products."""
    params, rate = list(problem.trainable.values()), problem.setting.learning_rate
    attributions = torch.zeros_like(problem.weights)
    with restored(params):
        states = inner_steps(problem, steps, params)
        _, adjoint = plain_gradient(problem, problem.outer, problem.outer_weights, params)
        for step in range(steps - 1, -1, -1):
            reach = size * _norm(states[step]) / _norm(adjoint)
            sides = []
            for sign in (1, -1):
                with torch.no_grad():
                    for parameter, start, direction in zip(params, states[step], adjoint, strict=True):
                        parameter.copy_(start + sign * reach * direction)
                sides.append(_side(problem, params, with_gradient=step > 0))
            (up, up_gradient), (down, down_gradient) = sides
            attributions -= rate * (up - down) / (2 * reach)
            adjoint = [
                x - rate * (y - z) / (2 * reach) for x, y, z in zip(adjoint, up_gradient, down_gradient, strict=False)
            ]
    return attributions


def _side(problem: Problem, params: list[nn.Parameter], with_gradient: bool) -> tuple[Tensor, list[Tensor]]:
    if with_gradient:
        return plain_gradient(problem, problem.inner, problem.weights, params)
    with torch.no_grad():  # the first step needs no curvature
        rows = torch.arange(len(problem.inner), device=problem.weights.device)
        chunks = rows.split(problem.setting.microbatch or len(problem.inner))
        return torch.cat([row_losses(problem.model, problem.inner.select(chunk)) for chunk in chunks]), []


def _norm(leaves: list[Tensor]) -> Tensor:
    return torch.stack([leaf.norm() for leaf in leaves]).norm()


def token_loss(problem: Problem, batch: TokenBatch, memory: str) -> TokenLoss:
    """The losses of a batch for this package's rules, with a preference for memory."""
    plan = {"fast": FAST, "lean": LEAN}[memory]
    return TokenLoss(problem.model, problem.lora.function, batch, problem.setting.microbatch or None, memory=plan)


def by_rule(problem: Problem, steps: int, rule: str, memory: str) -> Tensor:
    """Attributions by one of this package's rules, the inner loop included."""
    inner, outer = (token_loss(problem, batch, memory) for batch in (problem.inner, problem.outer))
    loop = InnerLoop(steps, SGD(problem.setting.learning_rate))
    with problem.lora.inactive():
        trajectory = loop.run(inner, problem.lora.start(), problem.weights)
        return get_rule(rule)(trajectory, WeightedLoss(outer, problem.outer_weights)).attributions


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        label: What the row is called.
        run: (problem, K) → attributions [R], or None for first-order passes alone.
        ours: Whether the row is set off in the plot.
    """

    label: str
    run: Callable[[Problem, int], Tensor | None]
    ours: bool = False


BASELINE = "baseline"
METHODS = {
    BASELINE: Method("first-order passes (PEFT)", baseline),
    "baseline-checkpointed": Method("first-order passes, checkpointed", baseline_checkpointed),
    "create-graph": Method("unrolled by hand", create_graph),
    "unrolled": Method("unrolled (hf_mass)", partial(by_rule, rule="unrolled", memory="fast")),
    "torchopt": Method("TorchOpt functional SGD", torchopt_functional),
    "higher": Method("higher", higher_functional),
    "finite-difference": Method("finite differences", finite_difference),
    "adjoint-fast": Method("adjoint, fast (hf_mass)", partial(by_rule, rule="adjoint", memory="fast"), ours=True),
    "adjoint-lean": Method("adjoint, lean (hf_mass)", partial(by_rule, rule="adjoint", memory="lean"), ours=True),
}
