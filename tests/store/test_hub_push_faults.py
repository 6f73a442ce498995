"""What goes wrong on the way to the Hub: a clear error or a retry, and nothing that is half there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hub_emulator import EmulatedHub
from hub_fixtures import BASE_ID, WEIGHTS, put_base, set_offline, trained_on

from hf_mass.errors import CheckpointError, HubError
from hf_mass.methods.mass_model import MassModel
from hf_mass.store.hub_files import push_folder


def test_pushing_without_the_right_to(hub: EmulatedHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for token, said in (
        ("hf_wrong", "the Hub does not know the token"),
        ("hf_reader", "the token has no right to do this.*hf auth login"),
        ("hf_bob", "the token has no right to do this.*hf auth login"),
    ):
        with pytest.raises(HubError, match=f"'alice/new' could not be pushed to: {said}"):
            push_folder(folder, "alice/new", token=token)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"it cannot be written to without a token that may.*hf auth login"):
        push_folder(folder, "alice/new")
    with pytest.raises(HubError, match=r"it cannot be written to without a token that may.*hf auth login"):
        push_folder(folder, "alice/mass")
    assert "alice/new" not in hub.repos


def test_pushing_to_no_name(hub: EmulatedHub, folder: Path) -> None:
    with pytest.raises(HubError, match=r"'a/b/c' could not be pushed to: this is no id of a repository \(owner/name\)"):
        push_folder(folder, "a/b/c")
    with pytest.raises(CheckpointError, match="is no folder, so there is nothing to push"):
        push_folder(folder / "none", "alice/new")


def test_pushing_a_bad_card(hub: EmulatedHub, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: my-own\n---\n")
    with pytest.raises(CheckpointError, match=r"Invalid metadata in README.md.*my-own"):
        push_folder(folder, "alice/new")
    assert set(hub.repos["alice/new"].files()) == {".gitattributes"}


def test_pushing_leaves_out_what_is_none_of_the_format(hub: EmulatedHub, folder: Path) -> None:
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "code.py",
        "checkpoint-2/adapter_config.json",
        ".env.json",
        "_x.json",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    push_folder(folder, "alice/new")
    assert set(hub.repos["alice/new"].files()) == {*hub.repos["alice/mass"].files()} - {"README.md"}


@pytest.mark.parametrize("place", ["/preupload/", "/lfs/objects/batch", "/put/", "/lfs/verify"])
def test_a_failure_while_pushing_is_retried(hub: EmulatedHub, folder: Path, place: str) -> None:
    hub.large.clear()
    hub.fail(place, 503, times=2)
    push_folder(folder, "alice/new")
    assert hub.faults[0].times == 0 and hub.repos["alice/new"].files()[WEIGHTS] == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("place", ["/repos/create", "/branch/", "/preupload/", "/put/", "/commit/"])
@pytest.mark.parametrize(("kind", "said"), [(503, "the Hub answers 503"), ("drop", "cannot be reached")])
def test_a_push_that_fails_changes_nothing_and_can_be_repeated(
    hub: EmulatedHub, folder: Path, place: str, kind: int | str, said: str
) -> None:
    hub.large.clear()
    hub.fail(place, kind, times=100)
    with pytest.raises(HubError, match=f"'alice/new' could not be pushed to: .*{said}"):
        push_folder(folder, "alice/new", revision="next")
    assert "alice/new" not in hub.repos or WEIGHTS not in hub.repos["alice/new"].files(
        "next" if "next" in hub.repos["alice/new"].refs else "main"
    )
    hub.faults.clear()
    push_folder(folder, "alice/new", revision="next")
    assert hub.repos["alice/new"].files("next")[WEIGHTS] == (folder / WEIGHTS).read_bytes()


ANSWERS = [(413, "too large for the Hub or a proxy before it"), (401, "cannot be written to"), (412, "412")]


@pytest.mark.parametrize(("status", "said"), ANSWERS)
@pytest.mark.parametrize("place", ["/preupload/", "/lfs/objects/batch", "/put/", "/commit/"])
def test_what_the_hub_answers_midway_is_told_and_the_next_push_completes(
    hub: EmulatedHub, folder: Path, place: str, status: int, said: str
) -> None:
    hub.large.clear()
    hub.fail(place, status, times=100)
    with pytest.raises(HubError, match=rf"'alice/new' could not be pushed to: .*{said}"):
        push_folder(folder, "alice/new")
    assert set(hub.repos["alice/new"].files()) == {".gitattributes"}
    hub.faults.clear()
    push_folder(folder, "alice/new")
    assert hub.repos["alice/new"].files()[WEIGHTS] == (folder / WEIGHTS).read_bytes()


def test_pushing_offline(hub: EmulatedHub, before: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    mass = MassModel.from_pretrained("alice/mass")
    set_offline(monkeypatch)
    with pytest.raises(HubError, match=r"'alice/new' could not be pushed to: HF_HUB_OFFLINE is set. Unset it"):
        mass.push_to_hub("alice/new")


def test_pushing_to_a_server_without_the_hubs_own_headers(hub: EmulatedHub) -> None:
    put_base(hub)
    mass = trained_on(BASE_ID)
    hub.fail("README.md", 404, times=50)
    mass.push_to_hub("alice/mass")
    assert "mass_config.json" in hub.repos["alice/mass"].files()
