"""Bad settings: of methods, of both trainers and their configs, and bad arguments of the public calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, get_origin

import hf_mass
from benchmarks.bad_input_case import HUGE, Case, Wrong, shown, wrong_values
from benchmarks.byte_model import build_model, build_tokenizer
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation
from hf_mass.methods.mass_settings import MassConfig
from hf_mass.methods.settings import Option, flat
from hf_mass.methods.ttt_settings import TTTSettings
from hf_mass.tasks.prompt_format import PromptFormat
from hf_mass.tasks.task import Task
from hf_mass.training.trl_settings import plain_kinds

SECONDS = 5.0
"""Time limit of adapting in a case."""
PAIRS = [("abc", "cba"), ("hello", "olleh"), ("stone", "enots"), ("word", "drow")]
EXTREMES = ("least", "most", "above", "below")


@cache
def strings() -> LanguageModel:
    """A model for texts, loaded once, before there are other processes."""
    return hf_mass.load("strings-base")


def task() -> Task:
    """A small one."""
    return Task.from_pairs(PAIRS, "river", "revir")


def require_sound(adaptation: Adaptation) -> None:
    """Raises `Wrong` if adapted weights are no numbers, or nothing is said of why there are none."""
    for _, tree in adaptation.parts:
        if any(not bool(leaf.isfinite().all()) for leaf in tree.values()):
            raise Wrong("the adapted weights are not finite")
    if not adaptation.parts and not (adaptation.reason or adaptation.guard_note):
        raise Wrong("it was not adapted, and nothing says why")


def adapted(method: Callable[[], Any], folder: Path) -> None:
    """Adapt by a method that is made now."""
    require_sound(hf_mass.adapt(strings(), task(), method(), time_limit=SECONDS))


def _kind(option: Option) -> str:
    if option.kind is bool:
        return "switch"
    if "tuple" in str(option.kind) or get_origin(option.kind) in (tuple, list):
        return "list"
    return "number" if option.kind in (int, float, int | None, float | None) else "choice"


def option_name(name: str) -> str:
    """What a refusal calls a setting: an entry of a pair has the pair's name, and lists of names say what they name."""
    kinds = ("inner_adam_beta", "transformations", "target_modules")
    return next((kind for kind in kinds if kind in name), name)


def _told_later(name: str, value: Any) -> bool:
    """Whether a value is a rate without measure, whose training ends with a reason."""
    return name.endswith("learning_rate") and value == 1e300


def _method_cases() -> Iterator[Case]:
    small: dict[str, dict[str, Any]] = {"ttt": {"preset": "strings"}, "mass": {"samples": 4}}
    for maker, cls in (("ttt", TTTSettings), ("mass", MassConfig)):
        make: Any = {"ttt": hf_mass.TTT, "mass": hf_mass.MASS}[maker]
        for name, option in flat(cls).items():
            if name in ("format", "preset"):
                continue
            for what, value, refused in wrong_values(_kind(option)):
                given = {**small[maker], name: value}
                run = partial(adapted, partial(make, **given))
                yield Case(
                    f"settings of {maker}",
                    what,
                    f"{name}={shown(value)}",
                    run,
                    refused and not _told_later(name, value),
                    option_name(name),
                )
            for bound in EXTREMES:
                if (value := getattr(option, bound)) is not None and option.kind in (int, float, int | None):
                    near = {"above": 1e-300, "below": 1 - 1e-12}.get(bound, value)
                    run = partial(adapted, partial(make, **{**small[maker], name: near}))
                    yield Case(f"settings of {maker}", "at its bound", f"{name}={shown(near)}", run)


def _config_cases(folder: str = "out") -> Iterator[Case]:
    for cls in (hf_mass.TTTConfig, hf_mass.MetaAdaptConfig):
        made = lambda given, folder, cls=cls: cls(output_dir=str(folder), use_cpu=True, report_to="none", **given)  # noqa: E731
        where, kinds, ours = f"{cls.__name__}", plain_kinds(cls), cls.__settings__
        for each in fields(cls):
            if each.name in ("output_dir", "use_cpu", "report_to") or not each.init:
                continue
            if each.name in ours:
                kind = _kind(ours[each.name])
            elif int in kinds.get(each.name, ()) or float in kinds.get(each.name, ()):
                kind = "number"
            elif bool in kinds.get(each.name, ()):
                kind = "switch"
            elif each.name in CHOICES:
                kind = "choice"
            else:
                continue
            nothing = each.default is None or type(None) in kinds.get(each.name, ())
            for what, value, refused in wrong_values(kind):
                meant = (each.default is not MISSING and value == each.default) or (value is None and nothing)
                meant = meant or (type(value) is bool and bool in kinds.get(each.name, ()))
                meant = meant or (isinstance(value, str) and str in kinds.get(each.name, ()) and kind == "number")
                yield Case(
                    where,
                    what,
                    f"{each.name}={shown(value)}",
                    partial(made, {each.name: value}),
                    refused and not meant,
                    each.name.rpartition("_")[2] if kind == "choice" else each.name,  # transformers names the type
                )


CHOICES = (
    *(
        "loss_type",
        "importance_sampling_level",
        "scale_rewards",
        "lr_scheduler_type",
        "optim",
        "multi_objective_aggregation",
    ),
    *("save_strategy", "eval_strategy", "logging_strategy", "log_level", "train_sampling_strategy", "hub_strategy"),
    *("cache_implementation", "vllm_mode", "vllm_importance_sampling_mode"),
)
"""Settings of TRL that have a few values."""

PATTERNS = (
    r"(?P<question>(a+)+)$(?P<answer>b)",
    r"(?P<question>(\w+\s?)*)\Z(?P<answer>.)",
    r"(?P<question>(.*)*)x(?P<answer>y)",
    "(",
    "(?P<answer>.)",
    "(?P<question>.*)(?P<answer>" + "(" * 200 + ")" * 200 + ")",
    "(?P<question>.{99999999999})(?P<answer>.)",
    "[" * 5000,
)


def _format_cases() -> Iterator[Case]:
    for name in PromptFormat.__dataclass_fields__:
        for what, value in (
            ("a number", 3),
            ("none", None),
            ("an object", {}),
            ("placeholder", "{no_such_thing}"),
            ("placeholder", "{question!r}"),
            ("placeholder", "{0.__class__}"),
            ("placeholder", "{"),
            ("placeholder", "{problem:>99999999999}"),
            ("a text", ""),
            ("zero byte", "\0"),
        ):
            run = lambda folder, name=name, value=value: _used(PromptFormat(**{name: value}))  # noqa: E731
            yield Case(
                "PromptFormat", what, f"{name}={shown(value)}", run, what in ("a number", "an object"), "PromptFormat"
            )
    for pattern in PATTERNS:
        for name in ("sample_pattern", "solution_pattern"):
            run = lambda folder, name=name, pattern=pattern: _used(PromptFormat(**{name: pattern}))  # noqa: E731
            yield Case("PromptFormat", "a pattern", f"{name}={shown(pattern)}", run, False, "PromptFormat")


def _used(fmt: PromptFormat) -> None:
    """Reads what models write: long, and of one character."""
    for text in ("a" * 2000 + "!", "word " * 400 + "!", "Question: 1\nAnswer: 2", "\n" * 2000):
        fmt.parse_sample(text)
        fmt.split_solution(text)


Call = tuple[Callable[[Any], Any], str, bool]
"""A call of one value, words that a refusal has, and whether the value is to be refused."""
NOTHING: list[tuple[str, Any]] = [
    ("none", None),
    ("a number", 3),
    ("a text", "no such thing"),
    ("a list", []),
    ("a list", [None]),
    ("an object", {}),
    ("bytes", b"x"),
    ("NaN", float("nan")),
    ("zero byte", "\0"),
    ("long", "x" * 100_000),
    ("a path", Path("/proc/self/mem")),
    ("a path", "/dev/zero"),
    ("a path", "../" * 100),
    ("a text", ""),
    ("400 digits", HUGE),
    ("an endless list", iter(int, 1)),
    ("a class", Task),
]
"""What hardly any argument takes: (what it is, the value)."""


def _model_calls(what: str, value: Any) -> dict[str, Call]:
    """`load`, `adapt` and `solve`."""
    lm, one = strings(), task()
    return {
        "hf_mass.load model": (lambda v: hf_mass.load(v), "", True),
        "hf_mass.load device": (lambda v: hf_mass.load("grids-small", device=v), "device", what != "none"),
        "hf_mass.load dtype": (lambda v: hf_mass.load("grids-small", dtype=v), "dtype", what != "none"),
        "hf_mass.load chat": (lambda v: hf_mass.load("grids-small", chat=v), "chat", what != "none"),
        "hf_mass.load chat_template_kwargs": (
            lambda v: hf_mass.load("grids-small", chat_template_kwargs=v),
            "chat",
            what not in ("none", "an object"),
        ),
        "hf_mass.load revision": (lambda v: hf_mass.load("grids-small", revision=v), "revision", what != "none"),
        "hf_mass.load tokenizer": (lambda v: hf_mass.load(lm.model, v), "", what != "none"),
        "hf_mass.adapt tasks": (lambda v: hf_mass.adapt(lm, v, time_limit=SECONDS), "", True),
        "hf_mass.adapt method": (lambda v: hf_mass.adapt(lm, one, v, time_limit=SECONDS), "", True),
        "hf_mass.adapt guard": (lambda v: hf_mass.adapt(lm, one, guard=v, time_limit=9), "guard", what != "none"),
        "hf_mass.adapt seed": (lambda v: hf_mass.adapt(lm, one, seed=v), "seed", what not in ("none", "a number")),
        "hf_mass.adapt tasks_per_pass": (
            lambda v: hf_mass.adapt(lm, one, tasks_per_pass=v),
            "tasks_per_pass",
            what not in ("none", "a number"),
        ),
        "hf_mass.adapt time_limit": (
            lambda v: hf_mass.adapt(lm, one, time_limit=v),
            "time_limit",
            what not in ("none", "a number"),
        ),
        "hf_mass.adapt on_event": (lambda v: hf_mass.adapt(lm, one, on_event=v), "on_event", what != "none"),
        "hf_mass.adapt stop": (lambda v: hf_mass.adapt(lm, one, stop=v), "stop", what != "none"),
        "hf_mass.solve problem": (lambda v: hf_mass.solve(lm, v, time_limit=SECONDS), "", True),
    }


def _task_calls(what: str, value: Any) -> dict[str, Call]:
    """Tasks, methods and files."""
    lm = strings()
    text, is_text = shown(value), isinstance(value, str) and bool(value.strip())
    return {
        "Task.from_pairs pairs": (
            lambda v: hf_mass.adapt(lm, Task.from_pairs(v, "river"), time_limit=SECONDS),
            "",
            what != "a list" or text != "[]",
        ),
        "Task.from_pairs query": (lambda v: Task.from_pairs(PAIRS, v), "query", not is_text),
        "Task.from_pairs answer": (lambda v: Task.from_pairs(PAIRS, "x", v), "answer", False),
        "Task.from_pairs instruction": (
            lambda v: Task.from_pairs(PAIRS, "x", instruction=v),
            "instruction",
            not isinstance(value, str),
        ),
        "Task.from_pairs verifier": (
            lambda v: Task.from_pairs(PAIRS, "x", verifier=v),
            "verifier",
            not isinstance(value, str),
        ),
        "Task.from_pairs id": (lambda v: Task.from_pairs(PAIRS, "x", id=v), "id", not isinstance(value, str)),
        "Task problem": (lambda v: Task(v), "problem", not is_text),
        "Task demonstrations": (lambda v: Task("x", v), "demonstrations", what != "a list" or text != "[]"),
        "Guard": (lambda v: adapted(lambda: hf_mass.Guard(v), Path()), "", True),
        "TTT preset": (lambda v: hf_mass.TTT(preset=v), "preset", what != "none"),
        "load_tasks": (lambda v: hf_mass.load_tasks(v), "", True),
        "load_few_shot_file": (lambda v: hf_mass.load_few_shot_file(v), "", True),
        "load_grid_tasks": (lambda v: hf_mass.load_grid_tasks(v), "", True),
        "load_bbh": (lambda v: hf_mass.load_bbh(v), "", True),
    }


def _trainer_calls(what: str, value: Any) -> dict[str, Call]:
    """Both trainers."""
    text = shown(value)
    return {
        "TTTTrainer train_dataset": (
            lambda v: hf_mass.TTTTrainer(tiny(), tiny_args(), train_dataset=v, processing_class=tokens()),
            "train_dataset",
            what not in ("none", "a list") or text == "[None]",
        ),
        "TTTTrainer model": (lambda v: hf_mass.TTTTrainer(v, tiny_args()), "", True),
        "TTTTrainer args": (
            lambda v: hf_mass.TTTTrainer(tiny(), v, processing_class=tokens()),
            "args",
            what != "none",
        ),
        "MetaAdaptTrainer train_dataset": (
            lambda v: hf_mass.MetaAdaptTrainer(tiny(), meta_args(), train_dataset=v, processing_class=tokens()),
            "",
            True,
        ),
        "MetaAdaptTrainer model": (lambda v: hf_mass.MetaAdaptTrainer(v, meta_args(), [task()]), "", True),
        "MetaAdaptTrainer args": (
            lambda v: hf_mass.MetaAdaptTrainer(tiny(), v, [task()], processing_class=tokens()),
            "args",
            what != "none",
        ),
        "MetaAdaptTrainer peft_config": (
            lambda v: hf_mass.MetaAdaptTrainer(tiny(), meta_args(), [task()], peft_config=v, processing_class=tokens()),
            "peft_config",
            what != "none",
        ),
    }


def _call_cases() -> Iterator[Case]:
    for what, value in NOTHING:
        calls = _model_calls(what, value) | _task_calls(what, value) | _trainer_calls(what, value)
        for name, (call, names, refused) in calls.items():
            where, _, argument = name.partition(" ")
            run = lambda folder, call=call, value=value: call(value)  # noqa: E731
            yield Case(where, what, f"{argument or 'argument'}={shown(value)}", run, refused, names)


@cache
def tokens() -> Any:
    """A tokenizer of bytes."""
    return build_tokenizer()


def tiny() -> Any:
    """A model of random weights."""
    return build_model(tokens(), 16, 1)


def tiny_args() -> Any:
    """Settings of a small run."""
    return hf_mass.TTTConfig(output_dir="out", use_cpu=True, report_to="none", lora_r=2)


def meta_args() -> Any:
    """The same of meta-training."""
    return hf_mass.MetaAdaptConfig(output_dir="out", use_cpu=True, report_to="none")


def setting_cases() -> list[Case]:
    """All of them."""
    return [*_method_cases(), *_config_cases(), *_format_cases(), *_call_cases()]
