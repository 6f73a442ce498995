"""Settings declared once: what is checked, what is offered under which name, and that it comes back."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import HfArgumentParser

from hf_mass.core import memory, meta_gradients, optimizers, weights
from hf_mass.errors import ConfigError
from hf_mass.methods import mass_settings
from hf_mass.methods.mass import MASS
from hf_mass.methods.mass_settings import MassConfig
from hf_mass.methods.sequence import TTTThenMASS
from hf_mass.methods.settings import build, check, declares, flat, setting
from hf_mass.methods.ttt import TTT
from hf_mass.methods.unadapted import MajorityVote, NoAdaptation


@dataclass(frozen=True)
class Motor:
    speed: float = setting(1.5, "Turns a second.", name="motor_speed", above=0, most=9)
    teeth: int = setting(12, "Teeth of the wheel.", name="motor_teeth", least=3)
    rates: tuple[float, float] = setting((0.1, 0.2), "Two shares.", name="rate", least=0, below=1)
    limit: int | None = setting(7, "Turns at most; None for no limit.", name="motor_limit", least=1)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Machine:
    colours: tuple[str, ...] = setting(("red",), "Paints.", choices=("red", "blue"))
    parts: str | tuple[str, ...] = setting("all", "Names of parts, or 'all'.")
    loud: bool = setting(False, "Whether it sounds.")
    motor: Motor = setting(Motor(), "The motor.")
    owner: str = "nobody"

    def __post_init__(self) -> None:
        check(self)


class Base:
    pass


@dataclass
@declares(Machine, without=("loud",), motor_teeth=20)
class Config(Base):
    rate1: float = 0.5
    mode: str = setting("slow", "How fast.", choices=("slow", "fast"))

    def __post_init__(self) -> None:
        check(self)


REFUSED: list[tuple[type, dict[str, Any], str]] = [
    (Motor, {"speed": 0.0}, r"^motor_speed is 0\.0; choose a finite number above 0 and of at most 9\.$"),
    (Motor, {"speed": 9.5}, "motor_speed is 9.5"),
    (Motor, {"speed": float("nan")}, "motor_speed is nan"),
    (Motor, {"speed": float("inf")}, "motor_speed is inf"),
    (Motor, {"speed": 10**400}, "motor_speed is 1000"),
    (Motor, {"speed": "fast"}, "motor_speed is 'fast'"),
    (Motor, {"speed": None}, "motor_speed is None"),
    (Motor, {"speed": True}, "motor_speed is True"),
    (Motor, {"teeth": 2}, "^motor_teeth is 2; choose a whole number of at least 3.$"),
    (Motor, {"teeth": 4.0}, "motor_teeth is 4.0"),
    (Motor, {"teeth": True}, "motor_teeth is True"),
    (Motor, {"rates": (0.1, 1.0)}, r"^rate is \(0\.1, 1\.0\); choose 2 finite numbers of at least 0 and below 1\.$"),
    (Motor, {"rates": (0.1,)}, r"rate is \(0\.1,\)"),
    (Motor, {"rates": 0.1}, "rate is 0.1"),
    (Motor, {"limit": 0}, "^motor_limit is 0; choose a whole number of at least 1 or None.$"),
    (Machine, {"colours": ("red", "pink")}, r"^Machine\.colours is .*'pink'.*choose at least one of \['red', 'blue'\]"),
    (Machine, {"colours": ()}, r"Machine\.colours is \(\)"),
    (Machine, {"colours": "red"}, r"Machine\.colours is 'red'"),
    (Machine, {"parts": 3}, r"^Machine\.parts is 3; choose a text or a list of texts\.$"),
    (Machine, {"loud": 1}, r"^Machine\.loud is 1; choose True or False\.$"),
    (Machine, {"motor": 3}, r"^Machine\.motor is 3; choose a Motor\.$"),
    (Config, {"mode": "x"}, r"^Config\.mode is 'x'; choose one of \['slow', 'fast'\]\.$"),
    (Config, {"motor_speed": -1.0}, r"^Config\.motor_speed is -1\.0; choose a finite number above 0"),
    (Config, {"rate2": 1.0}, r"^Config\.rate2 is 1\.0"),
]


@pytest.mark.parametrize(("cls", "values", "message"), REFUSED)
def test_a_value_out_of_place_is_refused_with_its_name_and_a_cure(
    cls: type, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**values)


@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text()))
def test_exactly_the_numbers_in_range_are_accepted(value: Any) -> None:
    fits = type(value) in (int, float) and 0 < value <= 9
    if fits:
        assert Motor(speed=value).speed == value
    else:
        with pytest.raises(ConfigError):
            Motor(speed=value)


def test_a_list_becomes_a_tuple() -> None:
    machine = Machine(colours=["blue"], parts=["a", "b"])  # type: ignore[arg-type]
    assert (machine.colours, machine.parts) == (("blue",), ("a", "b"))
    assert hash(machine) == hash(Machine(colours=("blue",), parts=("a", "b")))


def test_settings_are_listed_flat() -> None:
    options = flat(Machine)
    assert list(options) == [
        *("colours", "parts", "loud", "motor_speed", "motor_teeth", "rate1", "rate2", "motor_limit"),
    ]
    assert [options[name].type for name in ("colours", "parts", "rate2")] == [list[str], list[str] | None, float]
    assert (options["rate2"].default, options["rate2"].help, options["rate2"].below) == (0.2, "Two shares.", 1)


def test_two_settings_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="Two settings are called 'motor_speed'"):
        flat(Machine, Motor)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no setting 'sped'.*motor_speed"):
        declares(Machine, without=("sped",))
    with pytest.raises(ConfigError, match="no setting 'motor_tooth'"):
        declares(Machine, motor_tooth=3)


def test_a_config_has_each_setting_once_with_its_help() -> None:
    assert [f.name for f in fields(Config)] == [
        *("rate1", "mode", "colours", "parts", "motor_speed", "motor_teeth", "rate2", "motor_limit"),
    ]
    config, other = Config(), Config()
    assert (config.rate1, config.motor_teeth, config.motor_speed, config.mode) == (0.5, 20, 1.5, "slow")  # type: ignore[attr-defined]
    assert config.parts is None and config.colours == ["red"]  # type: ignore[attr-defined]
    assert config.colours is not other.colours  # type: ignore[attr-defined]


def test_settings_are_read_from_a_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = HfArgumentParser(Config)  # type: ignore[arg-type]
    words = "--colours blue red --parts a b --motor_speed 2 --rate2 0.25 --mode fast"
    (config,) = parser.parse_args_into_dataclasses(words.split())
    assert (config.colours, config.parts, config.mode) == (["blue", "red"], ["a", "b"], "fast")
    assert build(Machine, config) == Machine(("blue", "red"), ("a", "b"), motor=Motor(2.0, 20, (0.5, 0.25)))
    with pytest.raises(SystemExit):
        parser.parse_args_into_dataclasses(["--colours", "pink"])
    with pytest.raises(SystemExit):
        parser.parse_args_into_dataclasses(["--help"])
    page = " ".join(capsys.readouterr().out.split())
    assert "--motor_teeth" in page and "Teeth of the wheel." in page and "{slow,fast}" in page


machines = st.builds(
    Machine,
    st.lists(st.sampled_from(["red", "blue"]), min_size=1).map(tuple),
    st.one_of(st.text(), st.lists(st.text()).map(tuple)),
    st.booleans(),
    st.builds(
        Motor,
        st.floats(0, 9, exclude_min=True),
        st.integers(3),
        st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)),
        st.one_of(st.none(), st.integers(1)),
    ),
    st.text(),
)


@given(machines)
def test_settings_come_back_from_flat_names(machine: Machine) -> None:
    values = {"colours": list(machine.colours), "parts": machine.parts, "loud": machine.loud, "owner": machine.owner}
    values |= {f"motor_{name}": getattr(machine.motor, name) for name in ("speed", "teeth", "limit")}
    values |= {"rate1": machine.motor.rates[0], "rate2": machine.motor.rates[1]}
    assert build(Machine, values) == machine


def test_what_is_missing_takes_its_default_and_none_stays_where_it_is_a_value() -> None:
    assert build(Machine, {}) == Machine()
    assert build(Machine, {"motor_limit": None, "motor_teeth": None, "parts": None}) == Machine(motor=Motor(limit=None))


def test_settings_are_read_without_torch() -> None:
    code = "import sys, hf_mass.methods.mass_settings; print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_names_of_the_core_are_its_own() -> None:
    assert mass_settings.OPTIMIZERS == optimizers.OPTIMIZERS
    assert mass_settings.NORMALISATIONS == weights.NORMALISATIONS
    assert mass_settings.MEMORY_PREFERENCES == memory.PREFERENCES
    assert tuple(meta_gradients.RULES) == mass_settings.RULES


@pytest.mark.parametrize(
    ("given", "betas"),
    [
        ({}, (0.9, 0.999)),
        ({"inner_adam_beta1": 0.5}, (0.5, 0.999)),
        ({"inner_adam_beta2": 0.7}, (0.9, 0.7)),
        ({"inner_adam_beta1": 0.5, "inner_adam_beta2": 0.6}, (0.5, 0.6)),
        ({"inner_adam_beta1": None, "inner_adam_beta2": 0.6}, (0.9, 0.6)),
    ],
)
def test_one_entry_of_a_tuple_may_be_given(given: dict[str, Any], betas: tuple[float, float]) -> None:
    assert build(MassConfig, given).inner.betas == betas


@pytest.mark.parametrize("value", ["x", True, 1.0, -1, math.nan, 10**5000, [0.5]], ids=type)
def test_one_entry_of_a_tuple_is_checked(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"inner_adam_beta is .*choose 2 finite numbers of at least 0 and below 1"):
        MASS(inner_adam_beta1=value)


@pytest.mark.parametrize("value", ["x", -1, 10**5000, [1], np.ones(2), TTT], ids=type)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda x: MASS(asks=x), "MASS.asks"),
        (lambda x: MajorityVote(asks=x), "MajorityVote.asks"),
        (lambda x: NoAdaptation(asks=x), "NoAdaptation.asks"),
        (lambda x: TTTThenMASS(first=x), "TTTThenMASS.first"),
        (lambda x: TTTThenMASS(second=x), "TTTThenMASS.second"),
        (lambda x: MajorityVote(token_budget=x), "MajorityVote.token_budget"),
        (lambda x: MajorityVote(samples=x), "MajorityVote.samples"),
    ],
)
def test_parts_of_methods_that_are_none(make: Callable[[Any], object], name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} (is|must be) [^\n]*$"):
        make(value)


@pytest.mark.parametrize("value", [10**5000, functools.reduce(lambda x, _: [x], range(100_000), [])], ids=type)
@pytest.mark.parametrize("name", ["learning_rate", "lora_r", "vote", "transformations", "lora_target_modules"])
def test_values_too_large_to_show(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="too large to show"):
        TTT(**{name: value})
