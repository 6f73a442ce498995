"""Time and sampled tokens of ways to answer one problem on the tiny base, for `tasks.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.common import Table, time_interleaved
from benchmarks.stages import Stage, Stopwatch, shares
from hf_mass.lm.binding import deterministic
from hf_mass.lm.generation import Sampling, complete, row_seed
from hf_mass.methods.inner import InnerAdapter
from hf_mass.methods.judging import judge
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.scorer import Scorer
from hf_mass.tasks.task import Task

VOTE = "vote"
STAGES = (
    Stage("generate", MassModel, "generate_auxiliary"),
    Stage("score", MassModel, "features", whole=True),
    Stage("score", Scorer, "forward"),
    Stage("score", InnerAdapter, "weigh_by_demonstrations", whole=True),
    Stage("adapt", MassModel, "adapt"),
    Stage("answer", MassModel, "solve"),
)


@dataclass(frozen=True)
class Answered:
    """What answering one problem took.

    Args:
        tokens: Tokens sampled for it, thrown away or not.
    """

    tokens: int


def greedy(mass: MassModel, task: Task) -> Answered:
    """The model as it is."""
    return Answered(mass.solve(task).sampled_tokens)


def vote(mass: MassModel, task: Task, votes: int) -> Answered:
    """The most frequent of `votes` sampled answers, in one batch."""
    prompts = [mass.encoder.solver_prompt_ids(task)] * votes
    seeds = [row_seed("vote", task.id, task.problem, number) for number in range(votes)]
    with deterministic(mass.model), mass.adapter.lora.inactive():
        ids = complete(mass.model, mass.tokenizer, prompts, Sampling(mass.config.max_answer_tokens, 1.0), seeds)
    texts = mass.tokenizer.batch_decode(ids, skip_special_tokens=True)
    answers = [parts.answer for text in texts if (parts := mass.config.format.split_solution(text))]
    best = Counter(answers).most_common(1)[0][0] if answers else None
    chosen = next((text for text in texts if (p := mass.config.format.split_solution(text)) and p.answer == best), "")
    judge(mass.config.format, [task], [chosen])
    return Answered(sum(map(len, ids)))


def adapted(mass: MassModel, task: Task, weigh_by: str) -> Answered:
    """Generate, score, adapt, answer."""
    adaptation = mass.adapt(task, weigh_by)
    return Answered(int(adaptation.cost.sampled_tokens) + mass.solve(task, adaptation).sampled_tokens)


def adapted_together(mass: MassModel, tasks: list[Task]) -> list[Answered]:
    """The same for all problems in one call each."""
    adaptations = mass.adapt(tasks, "scorer")
    pairs = zip(adaptations, mass.solve(tasks, adaptations), strict=True)
    return [Answered(int(each.cost.sampled_tokens) + answer.sampled_tokens) for each, answer in pairs]


def latency_table(mass: MassModel, tasks: list[Task], repeats: int, clock: str) -> Table:
    """Milliseconds a problem, one problem at a time unless the row says otherwise."""
    each = {
        "greedy": partial(greedy, mass),
        "scorer": partial(adapted, mass, weigh_by="scorer"),
        "demonstrations": partial(adapted, mass, weigh_by="demonstrations"),
    }
    tokens = {name: [method(task).tokens for task in tasks] for name, method in each.items()}
    votes = max(1, round(sum(tokens["scorer"]) / sum(tokens["greedy"])))
    each[VOTE] = partial(vote, mass, votes=votes)
    tokens[VOTE] = [each[VOTE](task).tokens for task in tasks]
    tokens["together"] = [found.tokens for found in adapted_together(mass, tasks)]

    def one_by_one(method: Callable[[Task], Answered]) -> None:
        for task in tasks:
            method(task)

    runs: dict[str, Callable[[], object]] = {name: partial(one_by_one, method) for name, method in each.items()}
    runs["together"] = partial(adapted_together, mass, tasks)
    timings = time_interleaved(runs, repeats, baseline=VOTE, clock=clock)
    whole = f"{mass.config.samples} samples: generate, score, adapt, answer"
    labels = {
        "greedy": "greedy",
        VOTE: f"majority of {votes} answers",
        "scorer": f"{whole} (hf_mass)",
        "together": f"the same, {len(tasks)} problems in one call (hf_mass)",
        "demonstrations": "weighed by demonstrations instead (hf_mass)",
    }
    rows = []
    for name, label in labels.items():
        fields = timings[name].fields
        row = {"method": name, "label": label, **fields, "tokens": sum(tokens[name]) / len(tasks)}
        row["ms"] = 1000 * fields["seconds_median"] / len(tasks)
        if name not in ("greedy", VOTE):
            row |= _stage_shares(runs[name])
        rows.append(row)
    columns = {
        "label": "method",
        "ms": "ms a problem",
        "time_ratio": "time",
        "time_ratio_range": "spread",
        "tokens": "sampled tokens",
        **{stage: f"{stage}, %" for stage in ("generate", "score", "adapt", "answer")},
    }
    note = f"time: as a multiple of the majority vote's; {len(tasks)} problems, median of {repeats} interleaved repeats"
    return Table("latency of one problem on the tiny base", columns, rows, [note])


def _stage_shares(run: Callable[[], object]) -> dict[str, float]:
    watch = Stopwatch()
    with watch.watching(STAGES):
        run()
    return shares(watch.seconds, sum(watch.seconds.values()), "rest")
