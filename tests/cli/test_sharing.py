"""`hf-mass push` to an emulated Hub and `hf-mass card`, and models of the Hub for `hf-mass solve`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from cli_fixtures import FLIPS, GRIDS, run, write
from hub_emulator import EmulatedHub
from hub_fixtures import BASE_ID, put_base, trained_on

from hf_mass.store.card import NOT_MEASURED


@pytest.fixture
def saved(hub: EmulatedHub, tmp_path: Path) -> Path:
    """A model whose base is on the Hub."""
    put_base(hub)
    trained_on(BASE_ID).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_push_and_solve_with_what_was_pushed(hub: EmulatedHub, saved: Path) -> None:
    words = ("--private", "--commit_message", "First", "--token", "hf_alice", "--json")
    found = json.loads(run("push", saved, "alice/model", *words).stdout)
    repo = hub.repos["alice/model"]
    assert repo.private and repo.messages[-1] == "First" and found["commit"] == repo.refs["main"]
    assert found["kind"] == "a MassModel" and "no model card" in found["notes"][0]
    words = ("1 -> 2", "2 -> 3", "4", "--model", "alice/model", "--token", "hf_alice", "--method", "none", "--json")
    assert json.loads(run("solve", *words).stdout)["model"] == "alice/model"


def test_push_to_a_branch_and_as_a_pull_request(hub: EmulatedHub, saved: Path) -> None:
    text = run("push", saved, "alice/model", "--revision", "draft", "--token", "hf_alice").stdout
    assert "pushed a MassModel: http" in text and "mass_config.json" in hub.repos["alice/model"].files("draft")
    text = run("push", saved, "alice/model", "--create_pr", "--token", "hf_alice").stdout
    assert "/discussions/" in text


def test_an_adapter_is_pushed_and_carded(hub: EmulatedHub, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    run("adapt", write(tmp_path / "flips.json", FLIPS), "-o", adapter, *GRIDS)
    card = run("card", adapter).stdout
    assert card.startswith("---\n") and NOT_MEASURED in card and not (adapter / "README.md").exists()
    assert "written" in run("card", adapter, "-o", adapter / "README.md", "--repo_id", "alice/flips").stdout
    assert "alice/flips" in (adapter / "README.md").read_text()
    found = json.loads(run("push", adapter, "alice/flips", "--token", "hf_alice", "--json").stdout)
    assert found["kind"] == "a PEFT adapter" and found["notes"] == ["the base is grids-small, which ships with hf_mass"]
    assert {"README.md", "adapter_model.safetensors"} <= set(hub.repos["alice/flips"].files())


def test_what_others_could_not_load_is_not_pushed(hub: EmulatedHub, saved: Path) -> None:
    file = saved / "generator" / "adapter_config.json"
    values = json.loads(file.read_text())
    for base in ("/home/me/base", None):
        file.write_text(json.dumps({**values, "base_model_name_or_path": base}))
        assert "which others do not have" in run("push", saved, "alice/x", "--token", "hf_alice", code=1).stderr
    file.write_text("[]")
    assert "holds a list" in run("push", saved, "alice/x", "--token", "hf_alice", code=1).stderr
    file.unlink()
    assert "adapter_config.json is missing" in run("push", saved, "alice/x", "--token", "hf_alice", code=1).stderr
    assert "alice/x" not in hub.repos


def test_pickles_stay_here(hub: EmulatedHub, saved: Path) -> None:
    (saved / "optimizer.pt").write_bytes(b"x")
    text = run("push", saved, "alice/model", "--token", "hf_alice").stdout
    assert "not pushed, since pickles can run code: optimizer.pt" in text
    assert "optimizer.pt" not in hub.repos["alice/model"].files()


def test_who_may_not_write_is_told(hub: EmulatedHub, saved: Path) -> None:
    result = run("push", saved, "alice/model", "--token", "hf_nobody", code=1)
    assert result.stderr.startswith("hf-mass: 'alice/model' could not be pushed to") and result.stdout == ""


def test_the_examples_of_the_readme_run(
    hub: EmulatedHub, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, in a folder from which the package is seen as from the repository's root."""
    launched: list[dict[str, object]] = []
    monkeypatch.setattr("hf_mass.app.app.launch", lambda **given: launched.append(given))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf_mass").symlink_to(root / "hf_mass")
    lines = re.findall(r"^(hf-mass .*)$", (root / "README.md").read_text(), re.MULTILINE)
    for line in lines:
        words = shlex.split(line.partition(" > ")[0], comments=True)[1:]
        run(*(word.replace("user/", "alice/") for word in words))
    assert bool(launched) == any(line.startswith("hf-mass demo") for line in lines)


def test_a_card_of_no_table(saved: Path, tmp_path: Path) -> None:
    write(tmp_path / "results.json", {"format": 1})
    assert "not a saved table" in run("card", saved, "--results", tmp_path / "results.json", code=1).stderr
