"""Rows that begin alike, as one sequence and apart: time and peak tokens of an inner loop and its meta-gradient.

    python -m benchmarks.shared_rows --model ~/.cache/hf_mass/smollm2-135m-instruct
    python -m benchmarks.shared_rows --model ... --prompt 85 --answer 12 --samples 24 --repeats 5

Run in `examples`. m samples of random tokens stand behind one prompt; the outer loss is on one row as long as theirs.
Both ways are taken in turn, and the median of the processor's seconds is told.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import hf_mass
from hf_mass.core.inner_loop import InnerLoop
from hf_mass.core.losses import WeightedLoss
from hf_mass.core.meta_gradients import adjoint_rule
from hf_mass.core.optimizers import make_optimizer
from hf_mass.core.sharing import NO_SHARING, Sharing
from hf_mass.core.token_loss import IGNORED, TokenBatch, TokenLoss
from hf_mass.lm.device_memory import training_plan
from hf_mass.lm.sharing import sharing_of
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.mass_settings import MassConfig


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompt", type=int, default=400, help="tokens that the rows share")
    parser.add_argument("--answer", type=int, default=40, help="tokens of each row behind it")
    parser.add_argument("--samples", type=int, default=12, help="m")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2], help="K")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args(argv)


def random_rows(rows: int, prompt: int, answer: int, vocabulary: int) -> TokenBatch:
    """Rows of one task with the same prompt."""
    ids = torch.randint(vocabulary, (rows, prompt + answer), generator=torch.Generator().manual_seed(0))
    ids[:, :prompt] = ids[0, :prompt].clone()
    labels = ids.clone()
    labels[:, :prompt] = IGNORED
    return TokenBatch(ids, torch.ones_like(ids), labels, torch.zeros(rows, dtype=torch.long))


def timed(mass: MassModel, rows: TokenBatch, sharing: Sharing, steps: int) -> tuple[float, Tensor]:
    """(processor seconds of the inner loop and its meta-gradient, attributions [m])."""
    lora = mass.adapter.lora
    loss = TokenLoss(mass.model, lora.function, rows, sharing=sharing)
    loss.use(training_plan(loss, lora.start()))
    outer = TokenLoss(mass.model, lora.function, rows.select(torch.zeros(1, dtype=torch.long)))
    begun = time.process_time()
    weights = torch.full((len(rows),), 1 / len(rows))
    trajectory = InnerLoop(steps, make_optimizer("sgd", 0.03)).run(loss, lora.start(), weights)
    found = adjoint_rule(trajectory, WeightedLoss(outer, torch.ones(1)))
    return time.process_time() - begun, found.attributions


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(1)
    lm = hf_mass.load(arguments.model, dtype=getattr(torch, arguments.dtype))
    mass = MassModel.on(lm, MassConfig())
    rows = random_rows(arguments.samples, arguments.prompt, arguments.answer, lm.model.config.vocab_size)
    with mass.adapter.lora.inactive():
        ways = {"apart": NO_SHARING, "as one sequence": sharing_of(mass.model)}
        for steps in arguments.steps:
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            attributions: dict[str, Tensor] = {}
            for _ in range(arguments.repeats):
                for way, sharing in ways.items():
                    taken, attributions[way] = timed(mass, rows, sharing, steps)
                    seconds[way].append(taken)
            apart, together = (float(np.median(each)) for each in seconds.values())
            one, other = attributions.values()
            print(
                f"K = {steps}, m = {arguments.samples}, {arguments.prompt} + {arguments.answer} tokens: "
                f"apart {apart:.1f} s, as one sequence {together:.1f} s, ratio {apart / together:.2f}; attributions "
                f"differ by {float((one - other).norm() / one.norm()):.1e} ({lm.model.dtype})",
                flush=True,
            )


if __name__ == "__main__":
    main()
