"""The ways to adapt N tasks and to answer them that `tasks.py` compares, each to the same weights and tokens.

The problem: N tasks with a few rows each take one step of SGD from one LoRA adapter; then each answers a prompt at its
own weights. Peers are written with PEFT and PyTorch alone: one adapter for each task, one active at a time, or all of
them in one batch by `adapter_names`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig

from benchmarks.byte_model import build_tokenizer
from benchmarks.common import MethodUnavailable, answer_child, measure_peak, run_in_child
from benchmarks.metagrad_methods import Setting, build_model, row_losses
from hf_mass.core.token_loss import TokenBatch
from hf_mass.core.trees import Tree, tree_map
from hf_mass.core.weights import uniform_weights
from hf_mass.lm.encoding import Row, TextEncoder
from hf_mass.lm.generation import Sampling
from hf_mass.methods.inner import InnerAdapter, InnerProblem
from hf_mass.methods.mass_settings import InnerConfig, MassConfig
from hf_mass.tasks.task import Task

SHARED = "default"


@dataclass(frozen=True)
class Many:
    """How many tasks there are, and what each of them trains on and answers.

    Args:
        shape: The model; its `sequence` is the longest row.
        tasks: N.
        samples: Rows of one task; with `uneven` their mean.
        uneven: Numbers of rows and lengths of rows that differ, by about half up and down.
        trained: Start from an adapter whose B is not zero. A fresh one has B = 0, where the gradient of A vanishes.
        prompt: Tokens of a prompt to answer.
        new_tokens: Tokens of an answer.
        microbatch: Rows in one stacked pass; 0 for what the library chooses.
    """

    shape: Setting
    tasks: int = 8
    samples: int = 6
    uneven: bool = False
    trained: bool = False
    prompt: int = 8
    new_tokens: int = 16
    microbatch: int = 0


def build_rows(many: Many) -> list[Row]:
    """The rows of every task, task by task; the first third of a row is its prompt."""
    generator = torch.Generator().manual_seed(many.shape.seed + 3)
    longest, rows = many.shape.sequence, []
    for task in range(many.tasks):
        count = _around(many.samples, many.uneven, generator)
        for _ in range(count):
            # at most the longest: the mean of uneven rows is shorter
            length = max(4, min(longest, _around(longest - longest // 4, True, generator))) if many.uneven else longest
            ids = torch.randint(3, many.shape.vocabulary, (length,), generator=generator).tolist()
            rows.append(Row(task, ids[: length // 3], ids[length // 3 :]))
    return rows


def _around(mean: int, uneven: bool, generator: torch.Generator) -> int:
    if not uneven:
        return mean
    reach = mean // 2
    return max(1, mean - reach + int(torch.randint(0, 2 * reach + 1, (1,), generator=generator)))


def build_adapter_model(many: Many) -> PeftModel:
    """The shared base with the adapter that every task starts from."""
    model = build_model(many.shape)
    with torch.no_grad():
        # the end of a text gets a logit of 0, which is never the largest: all answers are equally long
        model.get_output_embeddings().weight[build_tokenizer().eos_token_id] = 0
        if not many.trained:
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.zero_()
    return model


def draw_prompts(many: Many) -> list[list[int]]:
    """One prompt for each task."""
    generator = torch.Generator().manual_seed(many.shape.seed + 4)
    return torch.randint(3, many.shape.vocabulary, (many.tasks, many.prompt), generator=generator).tolist()


def draw_weights(start: Tree, many: Many) -> Tree:
    """What the tasks might have been adapted to, [N, ...]: the start with noise of its own for each task."""
    generator = torch.Generator().manual_seed(many.shape.seed + 5)

    def moved(leaf: Tensor) -> Tensor:
        shape = (many.tasks, *leaf.shape[1:])
        return leaf + 0.1 * torch.randn(shape, generator=generator).to(leaf.device)

    return tree_map(moved, start)


class Stacked:
    """All tasks in one pass over the shared base, as `MassModel.adapt` and `MassModel.solve` do it.

    Args:
        many: The problem.
        memory: The preference for memory of the inner loop.
    """

    def __init__(self, many: Many, memory: str = "auto") -> None:
        shape, tokenizer = many.shape, build_tokenizer()
        inner = InnerConfig(
            learning_rate=shape.learning_rate, microbatch=many.microbatch or None, lora_rank=shape.rank, memory=memory
        )
        longest = shape.sequence + many.new_tokens + many.prompt
        config = MassConfig(max_length=longest, max_sample_tokens=1, max_answer_tokens=1, inner=inner)
        self.many, self.rows, self.prompts = many, build_rows(many), draw_prompts(many)
        self.model = build_adapter_model(many)
        self.adapter = InnerAdapter(self.model, TextEncoder(tokenizer, config.format, longest), config, SHARED)
        counts = torch.bincount(torch.tensor([row.task for row in self.rows]), minlength=many.tasks)
        self.usable = (torch.arange(int(counts.max()))[None] < counts[:, None]).to(self.adapter.device)

    def adapt(self) -> Tree:
        """θ' of every task, leaves [N, ...]."""
        loss = self.adapter.token_loss(self.rows)
        tasks = [Task(f"task {task}") for task in range(self.many.tasks)]
        problem = InnerProblem(tasks, [()] * len(tasks), loss, self.usable)
        return self.adapter.run(problem, uniform_weights(self.usable)).adapted

    def complete(self, params: Tree) -> list[list[int]]:
        """Greedy completions of every task's prompt at its own weights."""
        count = len(self.prompts)
        return self.adapter.complete(
            params, self.prompts, range(count), Sampling(self.many.new_tokens, temperature=0.0), [0] * count
        )


class PeftAdapters:
    """One PEFT adapter for each task on the shared base.

    Args:
        many: The problem.
    """

    def __init__(self, many: Many) -> None:
        self.many, self.model = many, build_adapter_model(many)
        self.names = [f"task{task}" for task in range(many.tasks)]
        for name in self.names:
            self.model.add_adapter(name, self.model.peft_config[SHARED])
        own = dict(self.model.named_parameters())
        self.shared = {name: value for name, value in own.items() if f".{SHARED}." in name}
        self.own = [
            {name: own[name.replace(f".{SHARED}.", f".{adapter}.")] for name in self.shared} for adapter in self.names
        ]
        self.put({name: value.detach()[None].expand(many.tasks, *value.shape) for name, value in self.shared.items()})
        encoder = TextEncoder(build_tokenizer(), MassConfig().format, many.shape.sequence)
        rows = build_rows(many)
        self.batches = [
            encoder.batch([row for row in rows if row.task == task], many.shape.device) for task in range(many.tasks)
        ]
        self.prompts = torch.tensor(draw_prompts(many), device=many.shape.device)
        self.config = GenerationConfig(
            max_new_tokens=many.new_tokens, do_sample=False, pad_token_id=0, eos_token_id=2, disable_compile=True
        )

    @torch.no_grad()
    def put(self, params: Tree) -> None:
        """Give every adapter its task's matrices."""
        for task, own in enumerate(self.own):
            for name, parameter in own.items():
                parameter.copy_(params[name][task])

    def read(self) -> Tree:
        """Every adapter's matrices, leaves [N, ...]."""
        return {name: torch.stack([own[name].detach() for own in self.own]) for name in self.shared}

    def adapt(self) -> None:
        """One step of SGD for one adapter after the other."""
        for name, own, batch in zip(self.names, self.own, self.batches, strict=True):
            self.model.set_adapter(name)
            self._step(list(own.values()), batch)

    def _step(self, parameters: list[nn.Parameter], batch: TokenBatch) -> None:
        optimizer = torch.optim.SGD(parameters, lr=self.many.shape.learning_rate)
        row_losses(self.model, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def complete(self) -> list[list[int]]:
        """Greedy completions with one adapter after the other."""
        found = []
        for task, name in enumerate(self.names):
            self.model.set_adapter(name)
            found += self._generate(self.prompts[task : task + 1])
        return found

    def complete_mixed(self) -> list[list[int]]:
        """Greedy completions in one batch, by PEFT's mixed-adapter inference."""
        return self._generate(self.prompts, adapter_names=self.names)

    def _generate(self, prompts: Tensor, **options: list[str]) -> list[list[int]]:
        output = self.model.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), generation_config=self.config, **options
        )
        return output[:, prompts.shape[1] :].tolist()


def update_error(found: Tree, reference: Tree, start: Tree) -> float:
    """‖found − reference‖ / ‖reference − start‖ over all matrices of a task, the largest over the tasks."""
    names = list(reference)
    off = sum(_squares(found[name] - reference[name]) for name in names)
    moved = sum(_squares(reference[name] - start[name]) for name in names)
    return float((torch.as_tensor(off) / torch.as_tensor(moved)).sqrt().max())


def _squares(leaf: Tensor) -> Tensor:
    return leaf.double().flatten(1).square().sum(1)


def equal_share(found: list[list[int]], reference: list[list[int]]) -> float:
    """The share of tokens that two sets of completions agree in."""
    pairs = [(x, y) for a, b in zip(found, reference, strict=True) for x, y in zip(a, b, strict=True)]
    return sum(x == y for x, y in pairs) / len(pairs)


@dataclass(frozen=True)
class AdaptMethod:
    """A row of the adapting table.

    Args:
        label: What the row is called.
        build: Makes the model and what belongs to it.
        ours: Whether the row is set off in the plot.
    """

    label: str
    build: Callable[[Many], Stacked | PeftAdapters]
    ours: bool = False


LOOP = "peft-loop"
ADAPT = {
    LOOP: AdaptMethod("loop over PEFT adapters", PeftAdapters),
    "stacked": AdaptMethod("stacked (hf_mass)", Stacked, ours=True),
    "stacked-lean": AdaptMethod("stacked, lean (hf_mass)", lambda many: Stacked(many, "lean"), ours=True),
}


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: the peak memory of one way to adapt."""
    many = Many(**{**request["many"], "shape": Setting(**request["many"]["shape"])})
    way = ADAPT[request["method"]].build(many)
    way.adapt()
    peak = measure_peak(way.adapt, many.shape.device)
    return {"peak_mib": peak.mib, "peak_source": peak.source}


def peak_memory(many: Many, method: str, threads: int) -> dict[str, Any]:
    """`measure` in a fresh process; the reason where it fails."""
    try:
        return run_in_child("benchmarks.adapters", {"many": asdict(many), "method": method}, threads)
    except MethodUnavailable as reason:
        return {"peak_source": f"not measured: {reason}"}


if __name__ == "__main__":
    answer_child(measure)
