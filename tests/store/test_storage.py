"""Settings and folders on disk: all or nothing when writing, and a clear error for whatever is wrong when reading."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from hf_mass.core.weights import NORMALISATIONS
from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.methods.mass_files import (
    CONFIG_NAME,
    FORMAT_VERSION,
    REQUIRED,
    read_config,
    write_config,
)
from hf_mass.methods.mass_settings import FEATURES, WEIGHINGS, AttributionConfig, InnerConfig, MassConfig, ScorerConfig
from hf_mass.methods.ttt_settings import TTTSettings
from hf_mass.store.storage import resolve, write_atomically
from hf_mass.tasks.formats import FORMATS, PromptFormat

positive = st.floats(1e-6, 1e6)
configs = st.builds(
    MassConfig,
    samples=st.integers(1, 99),
    temperature=positive,
    max_sample_tokens=st.integers(1, 999),
    max_answer_tokens=st.integers(1, 999),
    max_length=st.integers(1000, 9999),
    weigh_by=st.sampled_from(WEIGHINGS),
    format=st.sampled_from([*FORMATS.values(), PromptFormat(solver_template="Löse: {problem} →")]),
    inner=st.builds(
        InnerConfig,
        steps=st.integers(1, 4),
        learning_rate=positive,
        optimizer=st.sampled_from(["sgd", "momentum"]),
        momentum=st.floats(0, 0.99),
        lora_rank=st.integers(1, 64),
        lora_alpha=st.integers(1, 64),
        target_modules=st.sampled_from(["all-linear", ("q_proj", "v_proj"), ["o_proj"]]),
        microbatch=st.none() | st.integers(1, 9),
        rule=st.sampled_from(["adjoint", "unrolled"]),
    ),
    scorer=st.builds(
        ScorerConfig,
        features=st.lists(st.sampled_from(FEATURES), min_size=1, unique=True),
        width=st.integers(0, 99),
        normalization=st.sampled_from(NORMALISATIONS),
    ),
    attribution=st.builds(AttributionConfig, temperature=positive, rounds=st.integers(1, 5)),
)


# -- settings ----------------------------------------------------------------------------------------------------------


@given(configs)
def test_settings_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, config: MassConfig) -> None:
    folder = tmp_path_factory.mktemp("config")
    write_config(config, folder)
    assert read_config(folder) == config
    assert MassConfig.from_dict(config.to_dict()) == config
    assert MassConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_settings_left_out_take_their_defaults() -> None:
    assert MassConfig.from_dict({}) == MassConfig()
    assert MassConfig.from_dict({"inner": {"steps": 3}}).inner == InnerConfig(steps=3)


NAN, INFINITY = float("nan"), float("inf")
BAD: list[tuple[type, dict[str, object], str]] = [
    (MassConfig, {"samples": 0}, r"MassConfig\.samples is 0"),
    (MassConfig, {"max_sample_tokens": 0}, r"MassConfig\.max_sample_tokens is 0"),
    (MassConfig, {"max_answer_tokens": -1}, r"MassConfig\.max_answer_tokens is -1"),
    (MassConfig, {"max_length": 1}, r"MassConfig\.max_length is 1"),
    (MassConfig, {"temperature": 0.0}, r"MassConfig\.temperature is 0\.0"),
    (MassConfig, {"temperature": NAN}, r"MassConfig\.temperature is nan"),
    (MassConfig, {"weigh_by": "votes"}, r"weigh_by is 'votes'.*demonstrations"),
    (InnerConfig, {"steps": 0}, "inner_steps is 0"),
    (InnerConfig, {"learning_rate": 0.0}, r"inner_learning_rate is 0\.0"),
    (InnerConfig, {"learning_rate": -1.0}, r"inner_learning_rate is -1\.0"),
    (InnerConfig, {"learning_rate": INFINITY}, "inner_learning_rate is inf"),
    (InnerConfig, {"optimizer": "adam"}, "inner_optimizer is 'adam'"),
    (InnerConfig, {"optimizer": "momentum", "momentum": 1.0}, r"momentum is 1\.0"),
    (InnerConfig, {"lora_rank": 0}, "inner_lora_r is 0"),
    (InnerConfig, {"lora_alpha": 0}, "inner_lora_alpha is 0"),
    (InnerConfig, {"microbatch": 0}, "inner_microbatch is 0"),
    (InnerConfig, {"rule": "guess"}, "meta_gradient is 'guess'"),
    (AttributionConfig, {"temperature": 0.0}, r"attribution_temperature is 0\.0"),
    (AttributionConfig, {"temperature": INFINITY}, "attribution_temperature is inf"),
    (AttributionConfig, {"rounds": 0}, "attribution_rounds is 0"),
    (MassConfig, {"samples": 2.5}, r"MassConfig\.samples is 2\.5; choose a whole number of at least 1"),
    (MassConfig, {"top_p": 1.5}, r"MassConfig\.top_p is 1\.5; choose a finite number above 0 and of at most 1"),
    (MassConfig, {"top_k": -1}, r"MassConfig\.top_k is -1"),
    (InnerConfig, {"betas": (0.9,)}, r"inner_adam_beta is \(0\.9,\)"),
    (InnerConfig, {"betas": (0.9, 1.0)}, r"inner_adam_beta is \(0\.9, 1\.0\)"),
    (InnerConfig, {"epsilon": 0.0}, r"inner_adam_epsilon is 0\.0"),
    (InnerConfig, {"dropout": 1.0}, r"inner_lora_dropout is 1\.0"),
    (ScorerConfig, {"width": -1}, "scorer_width is -1"),
    (MassConfig, {"samples": 10**9}, r"MassConfig\.samples is 1000000000; choose .*at most 4096"),
    (MassConfig, {"max_length": 10**400}, r"MassConfig\.max_length is 1000"),
    (MassConfig, {"max_sample_tokens": NAN}, r"MassConfig\.max_sample_tokens is nan"),
    (InnerConfig, {"steps": 1.5}, r"inner_steps is 1\.5"),
    (InnerConfig, {"steps": 10**9}, "inner_steps is 1000000000"),
    (InnerConfig, {"lora_rank": "x"}, "inner_lora_r is 'x'"),
    (InnerConfig, {"lora_rank": 1.5}, r"inner_lora_r is 1\.5"),
    (InnerConfig, {"lora_rank": 10**7}, "inner_lora_r is 10000000"),
    (InnerConfig, {"learning_rate": 10**400}, "inner_learning_rate is 1000"),
    (InnerConfig, {"target_modules": 5}, "inner_target_modules is 5"),
    (ScorerConfig, {"width": 10**9}, "scorer_width is 1000000000"),
    (AttributionConfig, {"rounds": 10**9}, "attribution_rounds is 1000000000"),
    (TTTSettings, {"lora_r": "x"}, r"TTTSettings\.lora_r is 'x'"),
    (TTTSettings, {"lora_r": 1.5}, r"TTTSettings\.lora_r is 1\.5"),
    (TTTSettings, {"max_examples": 10**9}, r"TTTSettings\.max_examples is 1000000000"),
    (TTTSettings, {"learning_rate": NAN}, r"TTTSettings\.learning_rate is nan"),
]


@pytest.mark.parametrize(("kind", "settings", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_settings_are_refused(kind: type, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**settings)
    with pytest.raises(ConfigError, match=message):
        replace(kind(), **settings)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"MassConfig has no field 'sample'.*samples"):
        MassConfig.from_dict({"sample": 3})
    for part in ("inner", "scorer", "attribution"):
        with pytest.raises(ConfigError, match=rf"{part.title()}Config has no field 'speed'"):
            MassConfig.from_dict({part: {"speed": 3}})
    with pytest.raises(ConfigError, match="PromptFormat has no field 'colour'"):
        MassConfig.from_dict({"format": {"colour": "red"}})


def stored(**changes: object) -> str:
    values = {"format_version": FORMAT_VERSION, "hf_mass_version": "0.0.1", **MassConfig().to_dict(), **changes}
    return json.dumps({name: value for name, value in values.items() if value is not None})


UNREADABLE: dict[str, tuple[str | bytes, str]] = {
    "no JSON": ("{", "is no JSON"),
    "no text": (b"\xff\xfe{}", "is no JSON"),
    "a list": ("[1]", "holds a list, no settings"),
    "a version to come": (stored(format_version=FORMAT_VERSION + 1), f"format_version {FORMAT_VERSION + 1}; this rel"),
    "no version": (stored(format_version=None), "format_version None"),
    "an unknown setting": (stored(speed=3), "does not fit this release.*'speed'"),
    "a setting out of range": (stored(samples=0), r"does not fit this release: MassConfig\.samples is 0"),
    "a setting of another kind": (stored(samples="six"), "does not fit this release"),
    "a part of another kind": (stored(inner=3), "does not fit this release"),
    "few-shot settings of another kind": (stored(few_shot=[3]), "does not fit this release"),
    "prompts of another kind": (stored(format="x"), "does not fit this release"),
    "more samples than can be": (stored(samples=10**9), "does not fit this release.*at most 4096"),
    "NaN": (stored(temperature=float("nan")), "does not fit this release"),
    "a number of 400 digits": (stored(samples=10**400), "does not fit this release"),
    "a number of 5000 digits": ('{"samples": ' + "9" * 5000 + "}", "is no JSON"),
    "nesting without end": ("[" * 200_000, "nested too deep"),
    "nesting without end in a value": ('{"inner": ' * 200_000, "nested too deep"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_settings_are_named(case: str, tmp_path: Path) -> None:
    content, message = UNREADABLE[case]
    (tmp_path / CONFIG_NAME).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message) as caught:
        read_config(tmp_path)
    assert str(tmp_path / CONFIG_NAME) in str(caught.value) and "\n" not in str(caught.value)


def test_text_of_any_language_is_kept_readable(tmp_path: Path) -> None:
    write_config(MassConfig(format=PromptFormat(solver_template="解答: {problem}")), tmp_path)
    assert "解答" in (tmp_path / CONFIG_NAME).read_bytes().decode("utf-8")


# -- finding a folder --------------------------------------------------------------------------------------------------


def whole(folder: Path) -> Path:
    for name in REQUIRED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def resolve_folder(path: str | Path) -> Path:
    return resolve(path, None, None, REQUIRED, "saved MassModel", "Load it otherwise.")


def test_a_whole_folder_is_found(tmp_path: Path) -> None:
    assert resolve_folder(whole(tmp_path)) == tmp_path
    assert resolve_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", REQUIRED)
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    (whole(tmp_path) / name).unlink()
    with pytest.raises(CheckpointError, match="is missing") as caught:
        resolve_folder(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("path", ["/no/such/folder", "./none", "../none", "one/two/three"])
def test_what_can_only_be_a_folder_is_not_looked_for_elsewhere(path: str) -> None:
    with pytest.raises(CheckpointError, match=r"is no folder\. Give the folder that save_pretrained wrote"):
        resolve_folder(path)


@pytest.mark.parametrize("name", ["nobody/nothing", "not a name!", "gone"])
def test_a_hub_id_that_cannot_be_downloaded(name: str) -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor a Hub repository that could be downloaded"):
        resolve_folder(name)


# -- writing -----------------------------------------------------------------------------------------------------------


def writer(text: str, error: Exception | None = None) -> Callable[[Path], None]:
    """Writes two files, or fails between them."""

    def write(folder: Path) -> None:
        (folder / "first").write_text(text)
        if error is not None:
            raise error
        (folder / "second").write_text(text)

    return write


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_writing_and_writing_again(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    for text in ("one", "two"):
        write_atomically(target, writer(text))
        assert content(target) == {"first": text, "second": text}
        assert os.listdir(target.parent) == ["model"]  # nothing is left beside it
        assert target.stat().st_mode & 0o777 == 0o755


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_atomically(Path("model"), writer("one"))
    assert content(tmp_path / "model") == {"first": "one", "second": "one"}


DISK_FULL = [
    OSError(28, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    Exception("No space left on device (os error 28)"),  # what tokenizers raises
]


@pytest.mark.parametrize("error", DISK_FULL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("earlier", [True, False])
def test_a_full_disk_leaves_what_was_there(error: Exception, earlier: bool, tmp_path: Path) -> None:
    target = tmp_path / "model"
    if earlier:
        write_atomically(target, writer("one"))
    with pytest.raises(CheckpointError, match=r"model could not be written: .*No space left.* Free some space"):
        write_atomically(target, writer("two", error))
    assert os.listdir(tmp_path) == (["model"] if earlier else [])
    assert not earlier or content(target) == {"first": "one", "second": "one"}
    write_atomically(target, writer("three"))
    assert content(target) == {"first": "three", "second": "three"}


@pytest.mark.parametrize("error", [TypeError("a bug"), Exception("another"), KeyboardInterrupt()])
def test_other_failures_are_passed_on_and_leave_what_was_there(error: Exception, tmp_path: Path) -> None:
    target = tmp_path / "model"
    write_atomically(target, writer("one"))
    with pytest.raises(type(error)) as caught:
        write_atomically(target, writer("two", error))
    assert caught.value is error
    assert content(target) == {"first": "one", "second": "one"} and os.listdir(tmp_path) == ["model"]


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not be written"):
        write_atomically(tmp_path / "file" / "model", writer("one"))
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_failure_while_moving_puts_the_earlier_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    write_atomically(target, writer("one"))

    def failing(source: Path, destination: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing)
        with pytest.raises(CheckpointError, match="Input/output error"):
            write_atomically(target, writer("two"))
    assert content(target) == {"first": "one", "second": "one"} and os.listdir(tmp_path) == ["model"]


def test_what_an_earlier_release_was_killed_between_is_found(tmp_path: Path) -> None:
    """It exchanged folders by two renames."""
    replaced = tmp_path / ".model-replaced"
    replaced.mkdir()
    writer("one")(whole(replaced))
    assert (resolve_folder(tmp_path / "model") / "second").read_text() == "one"
    assert os.listdir(tmp_path) == ["model"]


def test_what_else_lies_in_the_folder_stays(tmp_path: Path) -> None:
    target = tmp_path / "run"
    (target / "checkpoint-10").mkdir(parents=True)
    (target / "checkpoint-10" / "state").write_text("kept")
    (target / "notes").write_text("kept")
    for text in ("one", "two"):
        write_atomically(target, lambda folder, text=text: writer(text)(whole(folder)))
        assert (target / "first").read_text() == (target / "second").read_text() == text
        assert (target / "notes").read_text() == (target / "checkpoint-10" / "state").read_text() == "kept"
        assert resolve_folder(target) == target and os.listdir(tmp_path) == ["run"]
    with pytest.raises(CheckpointError, match="could not be written"):
        write_atomically(target, writer("three", DISK_FULL[0]))
    assert (target / "first").read_text() == (target / "second").read_text() == "two"
