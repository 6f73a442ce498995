"""A `MassModel` through an emulated Hub and `huggingface_hub`'s own client: pushed, pulled, and the same."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_emulator import Account, EmulatedHub
from hub_fixtures import BASE_ID, behaviour, folder_files, put_base, same_behaviour, trained_on
from huggingface_hub import constants
from model_fixtures import byte_base, byte_tokenizer, conventions_model
from peft import PeftConfig, PeftModel
from repository import FIXTURES, python_path
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_mass.errors import CheckpointError, ConfigError, HubError
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.mass_settings import MassConfig

FILES = {
    *("README.md", "mass_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("generator/adapter_config.json", "generator/adapter_model.safetensors"),
    *("inner/adapter_config.json", "inner/adapter_model.safetensors"),
    *("scorer/scorer_config.json", "scorer/scorer.safetensors"),
}


@pytest.fixture
def mass(hub: EmulatedHub) -> MassModel:
    """A trained model whose base is on the Hub."""
    put_base(hub)
    return trained_on(BASE_ID)


# -- pushing -----------------------------------------------------------------------------------------------------------


def test_what_is_pushed(hub: EmulatedHub, mass: MassModel) -> None:
    info = mass.push_to_hub("alice/mass", commit_message="First")
    repo = hub.repos["alice/mass"]
    assert set(repo.files()) == FILES | {".gitattributes"}
    assert repo.messages == ["initial commit", "First"] and info.oid == repo.refs["main"]  # all of it at once
    assert repo.private is False
    for adapter in ("generator", "inner"):
        assert json.loads(repo.files()[f"{adapter}/adapter_config.json"])["base_model_name_or_path"] == BASE_ID
    assert f"base_model: {BASE_ID}" in repo.files()["README.md"].decode()
    assert hub.card_warnings == []


def test_pushing_the_same_again_commits_nothing(hub: EmulatedHub, mass: MassModel) -> None:
    first, second = mass.push_to_hub("alice/mass"), mass.push_to_hub("alice/mass")
    assert first.oid == second.oid and len(hub.repos["alice/mass"].messages) == 2


def test_a_bare_name_belongs_to_who_is_logged_in(hub: EmulatedHub, mass: MassModel) -> None:
    mass.push_to_hub("mine")
    assert set(hub.repos["alice/mine"].files()) >= FILES


def test_a_private_repository(hub: EmulatedHub, mass: MassModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    mass.push_to_hub("alice/secret", private=True, token="hf_alice")
    assert hub.repos["alice/secret"].private
    for token in (None, False, "hf_bob"):
        with pytest.raises(HubError, match=r"does not exist, or is private.*hf auth login.*token="):
            MassModel.from_pretrained("alice/secret", token=token)
    pulled = MassModel.from_pretrained("alice/secret", token="hf_alice")
    assert same_behaviour(mass, pulled)
    asked = [token for method, path, token in hub.requests if "alice/secret/resolve" in path and method == "GET"]
    assert set(asked) == {"hf_alice"}
    assert all(token is None for _, path, token in hub.requests if path.startswith("/cdn/"))


def test_a_branch(hub: EmulatedHub, mass: MassModel) -> None:
    mass.push_to_hub("alice/mass")
    other = trained_on(BASE_ID, scale=0.5)
    other.push_to_hub("alice/mass", revision="wide")
    assert set(hub.repos["alice/mass"].refs) == {"main", "wide"}
    assert same_behaviour(mass, MassModel.from_pretrained("alice/mass", byte_base()))
    pulled = MassModel.from_pretrained("alice/mass", byte_base(), revision="wide")
    assert same_behaviour(other, pulled)
    other.push_to_hub("alice/mass", revision="wide")  # which is there now
    commit = hub.repos["alice/mass"].refs["main"]
    assert same_behaviour(mass, MassModel.from_pretrained("alice/mass", byte_base(), revision=commit))


def test_the_base_is_not_asked_for_the_revision_of_the_adapter(hub: EmulatedHub, mass: MassModel) -> None:
    mass.push_to_hub("alice/mass", revision="wide")
    assert same_behaviour(mass, MassModel.from_pretrained("alice/mass", revision="wide"))
    assert not hub.asked(f"{BASE_ID}.*wide")


def test_a_pull_request_from_somebody_else(hub: EmulatedHub, mass: MassModel) -> None:
    mass.push_to_hub("alice/mass")
    before = hub.repos["alice/mass"].refs["main"]
    other = trained_on(BASE_ID, scale=0.5)
    info = other.push_to_hub("alice/mass", token="hf_bob", create_pr=True)
    assert info.pr_url == f"{hub.endpoint}/alice/mass/discussions/1" and hub.repos["alice/mass"].refs["main"] == before
    assert same_behaviour(other, MassModel.from_pretrained("alice/mass", byte_base(), revision="refs/pr/1"))


def test_a_card_that_somebody_wrote_stays(hub: EmulatedHub, mass: MassModel) -> None:
    hub.add("alice/mass", {"README.md": b"---\nlicense: mit\n---\n\nMeasured by hand.\n"})
    mass.push_to_hub("alice/mass")
    assert hub.repos["alice/mass"].files()["README.md"].endswith(b"Measured by hand.\n")


def test_a_base_on_this_machine_alone_is_warned_about(
    hub: EmulatedHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    byte_base().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    local = MassModel.from_base(tmp_path / "base", MassConfig())
    with caplog.at_level(logging.WARNING, "hf_mass"):
        local.push_to_hub("alice/mass")
    assert f"the local folder {tmp_path / 'base'}, which is not on the Hub" in caplog.text and "base=" in caplog.text
    named = json.loads(hub.repos["alice/mass"].files()["generator/adapter_config.json"])["base_model_name_or_path"]
    assert named == str(tmp_path / "base")
    assert str(tmp_path).encode() not in hub.repos["alice/mass"].files()["README.md"]
    (tmp_path / "base").rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"no such folder.*pass another copy of it as `base=`"):
        MassModel.from_pretrained("alice/mass")
    MassModel.from_pretrained("alice/mass", tmp_path / "gone")


def test_a_base_that_ships_needs_no_warning(hub: EmulatedHub, caplog: pytest.LogCaptureFixture) -> None:
    shipped = conventions_model(trained=True)
    with caplog.at_level(logging.WARNING, "hf_mass"):
        shipped.push_to_hub("alice/mass")
    assert "which is not on the Hub" not in caplog.text
    assert same_behaviour(shipped, MassModel.from_pretrained("alice/mass"))


# -- pulling -----------------------------------------------------------------------------------------------------------


def test_pulled_it_is_bit_for_bit_the_same(hub: EmulatedHub, mass: MassModel) -> None:
    mass.push_to_hub("alice/mass")
    assert same_behaviour(mass, MassModel.from_pretrained("alice/mass"))
    hub.requests.clear()
    assert same_behaviour(mass, MassModel.from_pretrained("alice/mass"))
    assert not hub.asked("/cdn/") and not hub.asked("alice/mass/resolve")  # all of it from the cache


def test_nothing_else_of_the_repository_is_downloaded(hub: EmulatedHub, mass: MassModel) -> None:
    mass.push_to_hub("alice/mass")
    extra = {"evil.py": b"boom", "training_args.bin": b"pickle", "last-checkpoint/optimizer.pt": b"pickle"}
    extra |= {"last-checkpoint/mass_config.json": b"{", "checkpoint-2/adapter_model.safetensors": b"", "big.gguf": b"."}
    hub.add("alice/more", hub.repos["alice/mass"].files() | extra)
    MassModel.from_pretrained("alice/more")
    assert not hub.asked("alice/more/resolve/.*(evil|args|checkpoint|gguf)")


def test_peft_alone_loads_the_generator(hub: EmulatedHub, mass: MassModel) -> None:
    mass.push_to_hub("alice/mass")
    named = PeftConfig.from_pretrained("alice/mass", subfolder="generator").base_model_name_or_path
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(named), "alice/mass", subfolder="generator")
    own, found = mass.model.state_dict(), alone.state_dict()
    assert all(own[name].equal(value) for name, value in found.items()) and any("lora_B" in name for name in found)


USER = """
import torch
torch.set_num_threads(1)
from hub_fixtures import behaviour
from hf_mass import MassModel
torch.save(behaviour(MassModel.from_pretrained("alice/mass")), {output!r})
"""
PEFT_ALONE = """
import sys
from huggingface_hub import HfApi, snapshot_download
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base = AutoModelForCausalLM.from_pretrained({base!r})
ids = AutoTokenizer.from_pretrained("alice/mass")("1 + 1", return_tensors="pt")
before = base(**ids).logits
model = PeftModel.from_pretrained(base, "alice/mass", subfolder="generator")
assert not model(**ids).logits.equal(before)
assert HfApi().model_info("alice/mass").private
assert "mass_config.json" in HfApi().list_repo_files("alice/mass")
assert snapshot_download("alice/mass")
assert not any(name.split(".")[0] == "hf_mass" for name in sys.modules)
"""


def in_a_new_process(code: str, hub: EmulatedHub, cache: Path, **variables: str) -> None:
    """Run code as a user would: nothing but environment variables says where the Hub is."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment = {**own, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_another_process_with_an_empty_cache(hub: EmulatedHub, mass: MassModel, tmp_path: Path) -> None:
    """Pushed here, pulled there, adapted with: samples, weights, adapted matrices and answers are the same bits."""
    before = behaviour(mass)
    mass.push_to_hub("alice/mass", private=True)
    code = USER.format(output=str(tmp_path / "found.pt"))
    in_a_new_process(code, hub, tmp_path / "home", HF_TOKEN="hf_alice", PYTHONPATH=python_path(FIXTURES))
    assert same_behaviour(before, torch.load(tmp_path / "found.pt"))


def test_another_process_without_this_package(hub: EmulatedHub, mass: MassModel, tmp_path: Path) -> None:
    mass.push_to_hub("alice/mass", private=True)
    in_a_new_process(PEFT_ALONE.format(base=BASE_ID), hub, tmp_path / "home", HF_TOKEN="hf_alice")


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_pickled_weights_are_refused(hub: EmulatedHub, mass: MassModel, tmp_path: Path) -> None:
    mass.save_pretrained(tmp_path / "model")
    pickled = tmp_path / "model" / "generator" / "adapter_model.bin"
    (pickled.parent / "adapter_model.safetensors").rename(pickled)
    hub.add("alice/pickled", folder_files(tmp_path / "model"))
    for place in ("alice/pickled", tmp_path / "model"):
        with pytest.raises(CheckpointError, match=r"generator/adapter_model.bin is a pickle.*Only safetensors"):
            MassModel.from_pretrained(place)
    assert not hub.asked(r"resolve.*\.bin")


def test_a_pickled_base_is_refused(hub: EmulatedHub, mass: MassModel) -> None:
    mass.push_to_hub("alice/mass")
    files = hub.repos[BASE_ID].files()
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    hub.add("maker/pickled", files)
    with pytest.raises(CheckpointError, match=r"Base model 'maker/pickled' could not be loaded: it has no safetensors"):
        MassModel.from_pretrained("alice/mass", "maker/pickled")
    assert not hub.asked(r"GET.*\.bin")


def test_an_unknown_version_is_refused(hub: EmulatedHub, mass: MassModel, tmp_path: Path) -> None:
    mass.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "mass_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "format_version": 9}))
    hub.add("alice/later", folder_files(tmp_path / "model"))
    with pytest.raises(CheckpointError, match=r"format_version 9; this release reads 1. Update hf_mass"):
        MassModel.from_pretrained("alice/later")


CODE = b"raise SystemExit('code of a repository was run')"


@pytest.mark.parametrize("field", ["AutoModelForCausalLM", "AutoConfig"])
def test_code_of_a_base_is_never_run(
    hub: EmulatedHub, mass: MassModel, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mass.push_to_hub("alice/mass")
    files = hub.repos[BASE_ID].files()
    config = json.loads(files["config.json"]) | {"model_type": "own", "auto_map": {field: "code.Own"}}
    hub.add("maker/code", files | {"config.json": json.dumps(config).encode(), "code.py": CODE})
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail("asked at the terminal"))
    for load in (
        lambda: MassModel.from_pretrained("alice/mass", "maker/code"),
        lambda: MassModel.from_base("maker/code", MassConfig()),
    ):
        with pytest.raises(CheckpointError, match="maker/code"):
            load()
    with pytest.raises(ConfigError, match="trust_remote_code is True; loading never runs code"):
        MassModel.from_pretrained("alice/mass", trust_remote_code=True)
    assert not hub.asked(r"code\.py")


def test_code_of_a_tokenizer_is_never_run(hub: EmulatedHub, mass: MassModel) -> None:
    mass.push_to_hub("alice/mass")
    files = hub.repos["alice/mass"].files()
    config = json.loads(files["tokenizer_config.json"]) | {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": ["code.Own", None]},
    }
    changed = {n: each for n, each in json.loads(files["mass_config.json"]).items() if n != "files"}
    files |= {"mass_config.json": json.dumps(changed).encode()}
    hub.add("alice/code", files | {"tokenizer_config.json": json.dumps(config).encode(), "code.py": CODE})
    with pytest.raises(CheckpointError, match="needs code from its repository, and loading never runs any"):
        MassModel.from_pretrained("alice/code")
    assert not hub.asked(r"code\.py")


def test_an_adapter_of_peft_alone(hub: EmulatedHub, mass: MassModel, tmp_path: Path) -> None:
    mass.model.save_pretrained(tmp_path, selected_adapters=["default"])
    hub.add("alice/lora", folder_files(tmp_path))
    with pytest.raises(CheckpointError, match="alice/lora is no saved MassModel, but an adapter of PEFT alone"):
        MassModel.from_pretrained("alice/lora")


# -- another base ------------------------------------------------------------------------------------------------------


def test_a_base_of_another_kind_is_refused(hub: EmulatedHub, mass: MassModel) -> None:
    mass.push_to_hub("alice/mass")
    put_base(hub, "maker/other", "gpt2")
    expected = (
        f"does not fit the base 'maker/other'; it was made for '{BASE_ID}': model_type 'gpt2' in place of 'llama'"
    )
    with pytest.raises(CheckpointError, match=expected):
        MassModel.from_pretrained("alice/mass", "maker/other")
    with pytest.raises(CheckpointError, match=r"model_type 'gpt2' in place of 'llama'.*Pass that one as `base=`"):
        MassModel.from_pretrained("alice/mass", byte_base("gpt2"))


SHAPES = [
    ({"hidden_size": 32}, False, "hidden_size 32 in place of 16"),
    ({"num_hidden_layers": 2}, False, "num_hidden_layers 2 in place of 1"),
    ({"vocab_size": 300}, False, "vocab_size 300 in place of 259"),
    # Saved before the base was described: what the matrices themselves and the tokenizer tell.
    ({"hidden_size": 32}, True, "size mismatch"),
    ({"vocab_size": 200}, True, "the tokenizer has 259 tokens, the base 200"),
]


@pytest.mark.parametrize(("changes", "older", "expected"), SHAPES)
def test_a_base_of_another_shape_is_refused(
    hub: EmulatedHub, mass: MassModel, changes: dict[str, int], older: bool, expected: str
) -> None:
    mass.push_to_hub("alice/mass")
    if older:
        files = hub.repos["alice/mass"].files()
        config = json.loads(files["mass_config.json"])
        del config["base_model"]
        hub.add("alice/mass", files | {"mass_config.json": json.dumps(config).encode()})
    other = LlamaForCausalLM(LlamaConfig(**{**byte_base().config.to_dict(), **changes}))
    with pytest.raises(CheckpointError, match=f"does not fit the base.*{expected}.*Pass that one as `base=`"):
        MassModel.from_pretrained("alice/mass", other)


def test_a_base_that_has_too_few_layers(mass: MassModel, tmp_path: Path) -> None:
    deep = LlamaForCausalLM(LlamaConfig(**{**byte_base().config.to_dict(), "num_hidden_layers": 2}))
    MassModel.from_base(deep, MassConfig(), tokenizer=byte_tokenizer()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "mass_config.json").read_text())
    assert config.pop("base_model") == {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "vocab_size": 259,
    }
    (tmp_path / "mass_config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"made for another: \d+ matrices are on one side only \(first: .*layers.1.*Pass that one"
    ):
        MassModel.from_pretrained(tmp_path, byte_base())


def test_another_copy_of_the_base_is_taken(hub: EmulatedHub, mass: MassModel) -> None:
    mass.push_to_hub("alice/mass")
    put_base(hub, "maker/copy")
    assert same_behaviour(mass, MassModel.from_pretrained("alice/mass", "maker/copy"))
    del hub.repos[BASE_ID]
    assert same_behaviour(mass, MassModel.from_pretrained("alice/mass", byte_base()))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("missing", "it does not exist, or is private.*or pass another copy of it as `base=`"),
        ("private", "it does not exist, or is private"),
        ("gated", "it is gated. Ask for access at http.*/maker/tiny-base, then log in with `hf auth login`"),
    ],
)
def test_a_base_that_is_not_to_be_had(
    hub: EmulatedHub, mass: MassModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, expected: str
) -> None:
    mass.push_to_hub("alice/mass")
    base = hub.repos[BASE_ID]
    if state == "missing":
        del hub.repos[BASE_ID]
    else:
        base.private, base.gated = state == "private", state == "gated"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    with pytest.raises(HubError, match=f"Base model '{BASE_ID}' could not be loaded: {expected}"):
        MassModel.from_pretrained("alice/mass")
    if state != "missing":
        hub.accounts["hf_maker"] = Account("maker")
        hub.repos["alice/mass"].private = False
        assert same_behaviour(mass, MassModel.from_pretrained("alice/mass", token="hf_maker"))
