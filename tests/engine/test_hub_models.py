"""Models of the Hub that adapt live: a saved `MassModel`, a bare base, and what cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hub_emulator import EmulatedHub
from hub_fixtures import BASE_ID, folder_files, put_base, trained_on
from model_fixtures import byte_tokenizer
from model_forms import multimodal

from hf_mass.app.handlers import Handlers
from hf_mass.app.visitors import Visitors
from hf_mass.app.workshop import MODEL_VARIABLE, Workshop
from hf_mass.engine.api import adapt
from hf_mass.engine.models import load
from hf_mass.engine.session import Session
from hf_mass.errors import CheckpointError, HubError
from hf_mass.methods.registry import make_method
from hf_mass.tasks.problems import read_problem

LINES = read_problem("1 -> 2\n2 -> 3\n3 -> 4\n4 ->")


@pytest.fixture
def pushed(hub: EmulatedHub) -> str:
    """A MassModel on the Hub."""
    put_base(hub)
    trained_on(BASE_ID).push_to_hub("alice/mass", private=True)
    return "alice/mass"


@pytest.mark.parametrize("method", ["mass", "ttt", "both"])
def test_a_saved_model_and_a_bare_base_adapt(hub: EmulatedHub, pushed: str, method: str) -> None:
    settings = {"samples": 2, "max_examples": 4, "num_train_epochs": 1}
    for name in (pushed, BASE_ID):
        solution = Session(load(name), make_method(method, settings)).solve(LINES)
        assert len(solution.before) == len(solution.after) == 1
        assert bool(solution.samples) == (method != "ttt")


def test_a_gguf_file_of_a_hub_repository(hub: EmulatedHub, tiny_gguf: Path, tmp_path: Path) -> None:
    """Named by its path in the repository; a LoRA on it names it so, and finds it again."""
    data = tiny_gguf.read_bytes()
    hub.add("maker/tiny-GGUF", {"README.md": b"#", "tiny-Q8_0.gguf": data, "other/tiny.gguf": data})
    for wrong in ("maker/tiny-GGUF", "maker/tiny-GGUF/missing.gguf"):
        with pytest.raises(CheckpointError, match=r"maker/tiny-GGUF/other/tiny\.gguf, maker/tiny-GGUF/tiny-Q8_0\.gguf"):
            load(wrong)
    with pytest.raises(HubError, match="maker/none"):
        load("maker/none/tiny.gguf")
    hub.requests.clear()
    lm, here = load("maker/tiny-GGUF/other/tiny.gguf", device="cpu"), load(tiny_gguf, device="cpu")
    assert hub.asked("maker/tiny-GGUF/resolve/main/.*gguf", "HEAD") == 1
    ids = lm.tokenizer("cd", return_tensors="pt")["input_ids"]
    assert torch.equal(lm.model(ids).logits, here.model(ids).logits)
    adaptation = adapt(
        lm, read_problem("cd -> dc\nda -> ad\nac -> ca\ndc ->").tasks[0], make_method("ttt", {"max_examples": 4})
    )
    adaptation.save(tmp_path / "lora")
    assert "maker/tiny-GGUF/other/tiny.gguf" in (tmp_path / "lora/adapter_config.json").read_text()
    again = load(tmp_path / "lora", device="cpu")
    with adaptation.applied():
        torch.testing.assert_close(again.model(ids).logits, lm.model(ids).logits)


def test_a_revision_of_a_hub_model_and_a_lora_on_one(hub: EmulatedHub, tmp_path: Path) -> None:
    put_base(hub)
    first = hub.repos[BASE_ID].refs["main"]
    put_base(hub, "maker/other", kind="gpt2")
    hub.repos[BASE_ID].commits["f" * 40] = hub.repos["maker/other"].commits[hub.repos["maker/other"].refs["main"]]
    hub.repos[BASE_ID].refs["main"] = "f" * 40
    assert type(load(BASE_ID).model.get_base_model()).__name__ == "GPT2LMHeadModel"
    old = load(BASE_ID, revision=first, device="cpu")
    assert type(old.model.get_base_model()).__name__ == "LlamaForCausalLM" and old.name == BASE_ID
    hub.repos[BASE_ID].refs["main"] = first

    task = LINES.tasks[0]
    adaptation = adapt(old, task, make_method("ttt", {"max_examples": 4}))
    adaptation.save(tmp_path / "lora")
    hub.add("maker/lora", folder_files(tmp_path / "lora"))
    again = load("maker/lora", device="cpu")
    ids = again.tokenizer("12", return_tensors="pt")["input_ids"]
    with adaptation.applied():
        assert torch.allclose(again.model(ids).logits, old.model(ids).logits, atol=1e-4)


def test_the_language_model_of_a_multimodal_one_of_the_hub(hub: EmulatedHub, tmp_path: Path) -> None:
    whole = multimodal("llava")
    whole.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    hub.add("maker/sees", folder_files(tmp_path))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(load("maker/sees", device="cpu").model(ids).logits, whole(input_ids=ids).logits)


def test_what_cannot_be_had(hub: EmulatedHub, pushed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match=r"does not exist, or is private.*hf auth login"):
        load("alice/nothing")
    with pytest.raises(HubError, match="no id of a repository"):
        load("no/such/folder/here")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="does not exist, or is private"):
        load(pushed, token=False)
    assert load(pushed, token="hf_alice").name == pushed


def test_the_app_on_a_private_repository(
    hub: EmulatedHub, pushed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODEL_VARIABLE, pushed)
    page = Handlers(Workshop.load(device="cpu"), Visitors(tmp_path / "sessions"))
    *_, outcome = page.solve("1 -> 2\n2 -> 3\n3 ->", "mass", settings={"samples": 2})
    assert outcome["done"] and outcome["model"] == pushed and len(outcome["samples"][0]) == 2
