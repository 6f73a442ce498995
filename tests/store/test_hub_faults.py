"""What goes wrong on the way from the Hub: a clear error or a retry, never half a model, no broken cache."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hub_emulator import EmulatedHub
from hub_fixtures import BASE_ID, WEIGHTS, same_behaviour, set_offline
from huggingface_hub import constants, file_download

import hf_mass
from hf_mass.errors import CheckpointError, HubError
from hf_mass.methods.mass_files import REQUIRED
from hf_mass.methods.mass_model import MassModel
from hf_mass.store.hub_files import download_snapshot


def fails(match: str, kind: type[Exception] = HubError, **options: Any) -> None:
    with pytest.raises(kind, match=match):
        MassModel.from_pretrained("alice/mass", **options)


def works(before: dict[str, Any], **options: Any) -> None:
    assert same_behaviour(before, MassModel.from_pretrained("alice/mass", **options))


# -- not there, or not for everybody -----------------------------------------------------------------------------------


def test_a_missing_repository(hub: EmulatedHub) -> None:
    expected = (
        "'alice/none' is neither a folder nor a Hub repository.*: it does not exist, or is private. Check the name"
    )
    for token in (None, False, "hf_bob"):
        with pytest.raises(HubError, match=expected):
            MassModel.from_pretrained("alice/none", token=token)


def test_a_wrong_token(hub: EmulatedHub, before: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fails(r"the Hub does not know the token \(`token=`, HF_TOKEN, or the one of `hf auth login`\)", token="hf_wrong")
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    fails("the Hub does not know the token")
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    works(before)
    fails("the Hub does not know the token", token="hf_wrong")  # also beside the copy that is in the cache now
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    fails("the Hub does not know the token")
    with pytest.raises(HubError, match="the Hub does not know the token"):
        hf_mass.load("alice/mass")
    works(before, token=False)


def test_a_gated_repository(hub: EmulatedHub, before: dict[str, Any]) -> None:
    hub.repos["alice/mass"].gated = True
    expected = (
        f"'alice/mass' .*: it is gated. Ask for access at {hub.endpoint}/alice/mass, then log in with `hf auth login`"
    )
    fails(expected, token="hf_bob")
    fails(expected, token=False)
    hub.repos["alice/mass"].granted.add("bob")
    works(before, token="hf_bob")


def test_an_unknown_revision(hub: EmulatedHub, before: dict[str, Any]) -> None:
    fails("it has no revision 'v9'. Give a branch, tag or commit that it has as `revision=`", revision="v9")
    fails(f"it has no revision '{'0' * 40}'", revision="0" * 40)
    works(before)


def test_no_name_of_a_repository(hub: EmulatedHub) -> None:
    with pytest.raises(HubError, match=r"'not a name!' .*: this is no id of a repository \(owner/name\)"):
        MassModel.from_pretrained("not a name!")


@pytest.mark.parametrize("name", REQUIRED)
def test_a_file_that_the_repository_lacks(hub: EmulatedHub, before: dict[str, Any], name: str) -> None:
    whole = hub.repos["alice/mass"]
    files = {path: data for path, data in whole.files().items() if path != name}
    hub.add("alice/mass", files)
    fails(f"{name} is missing: alice/mass is no saved MassModel, or an incomplete one", CheckpointError)
    hub.repos["alice/mass"] = whole
    works(before)


# -- a bad line, a bad Hub ---------------------------------------------------------------------------------------------


PLACES = {
    "the listing": "/api/models/alice/mass/tree/",
    "a file's name": "alice/mass/resolve/.*mass_config",
    "a small file": "alice/mass/resolve/.*mass_config",
    "a large file": "/cdn/.*generator",
}
METHODS = {"a file's name": "HEAD", "a small file": "GET", "a large file": "GET"}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", [503, 429, "drop"])
def test_failures_that_pass_are_retried_or_told(
    hub: EmulatedHub, before: dict[str, Any], place: str, kind: int | str
) -> None:
    """The client tries most requests again. Where it does not, the message says what to do, and that helps."""
    hub.fail(PLACES[place], kind, method=METHODS.get(place, "GET"))
    try:
        works(before)
    except HubError as error:
        assert re.search(rf"the Hub answers {kind}|cannot be reached .*try again", str(error))
    works(before)
    assert hub.faults[0].times == 0


@pytest.mark.parametrize("place", ["/api/models/alice/mass/revision", *PLACES.values()])
@pytest.mark.parametrize(
    ("kind", "said"), [(503, "the Hub answers 503.*Try again later"), ("drop", "cannot be reached")]
)
def test_failures_that_do_not_pass(
    hub: EmulatedHub, before: dict[str, Any], place: str, kind: int | str, said: str
) -> None:
    hub.fail(place, kind, times=100)
    fails(f"'alice/mass' .*: .*{said}")
    hub.faults.clear()
    works(before)


@pytest.mark.parametrize("name", ["mass_config.json", WEIGHTS, "tokenizer.json"])
def test_a_cut_connection_is_taken_up_where_it_was_cut(hub: EmulatedHub, before: dict[str, Any], name: str) -> None:
    hub.fail(name, "cut", method="GET")
    works(before)
    assert hub.asked(name, "GET") == 2


def test_a_connection_that_is_always_cut(hub: EmulatedHub, before: dict[str, Any]) -> None:
    hub.fail(WEIGHTS, "cut", times=100, method="GET")
    fails("'alice/mass' .*: .*cannot be reached .*the cache .* has no whole copy.*adapter_model.safetensors")
    hub.faults.clear()
    works(before)


@pytest.mark.parametrize("name", ["mass_config.json", WEIGHTS])
def test_a_file_that_is_too_short_is_noticed(hub: EmulatedHub, before: dict[str, Any], name: str) -> None:
    hub.fail(name, "short", method="GET")
    fails("'alice/mass' .*: a file was cut off on the way .*Try again")
    works(before)


def test_a_slow_hub_is_asked_again(hub: EmulatedHub, before: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.fail(WEIGHTS, "slow", seconds=0.6, method="GET")
    works(before)
    assert hub.asked(WEIGHTS, "GET") == 2


@pytest.mark.parametrize("name", ["mass_config.json", WEIGHTS, "inner/adapter_config.json", "tokenizer.json"])
def test_content_with_another_hash_is_noticed(hub: EmulatedHub, before: dict[str, Any], name: str) -> None:
    hub.fail(name, "wrong", method="GET")
    fails(f"content of {Path(name).name} does not have the hash that the Hub lists.*load it again", CheckpointError)
    works(before)


def test_a_base_with_another_hash_is_noticed(hub: EmulatedHub, before: dict[str, Any]) -> None:
    hub.fail("model.safetensors$", "wrong", method="GET")
    hub.faults[0].pattern = "/cdn/.*name=model.safetensors"
    fails(f"Base model '{BASE_ID}' could not be loaded: the content of .* does not have the hash", CheckpointError)
    works(before)


def test_a_cache_that_was_damaged_later_is_noticed(hub: EmulatedHub, before: dict[str, Any]) -> None:
    works(before)
    blob = (download_snapshot("alice/mass") / WEIGHTS).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    fails("adapter_model.safetensors does not have the hash", CheckpointError)
    works(before)


# -- no network --------------------------------------------------------------------------------------------------------


def pull_the_plug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


UNREACHED = {
    "offline": (set_offline, "HF_HUB_OFFLINE is set, and the cache .*Unset it, and try again"),
    "unplugged": (pull_the_plug, "http://127.0.0.1:9 cannot be reached .*and the cache .*Connect, and try again"),
}


@pytest.mark.parametrize("how", UNREACHED)
def test_without_a_network_the_cache_is_enough(
    hub: EmulatedHub, before: dict[str, Any], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    works(before)
    hub.requests.clear()
    UNREACHED[how][0](monkeypatch)
    works(before)
    assert hub.requests == []


@pytest.mark.parametrize("how", UNREACHED)
def test_without_a_network_and_with_an_empty_cache(
    hub: EmulatedHub, before: dict[str, Any], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, said = UNREACHED[how]
    with monkeypatch.context() as patch:
        act(patch)
        fails(f"'alice/mass' .*: {said}")
        fails(f"'alice/mass' .*cache .{constants.HF_HUB_CACHE}")
    works(before)


@pytest.mark.parametrize("how", UNREACHED)
def test_without_a_network_and_with_half_of_it_in_the_cache(
    hub: EmulatedHub, before: dict[str, Any], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fail(WEIGHTS, 404, times=9, method="GET")
    fails("'alice/mass'")
    hub.faults.clear()
    act, said = UNREACHED[how]
    with monkeypatch.context() as patch:
        act(patch)
        fails(f"{said.split(' .*')[0]}.*1 file.*are missing \\({WEIGHTS}\\)")
    works(before)


@pytest.mark.parametrize("how", UNREACHED)
def test_without_a_network_and_without_the_base(
    hub: EmulatedHub, before: dict[str, Any], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    download_snapshot("alice/mass")
    act, said = UNREACHED[how]
    with monkeypatch.context() as patch:
        act(patch)
        fails(f"Base model '{BASE_ID}' could not be loaded: {said}.*or pass another copy of it as `base=`")
    works(before)


# -- the cache itself --------------------------------------------------------------------------------------------------


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nobody, root included, may write below the folder."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o555 | 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in [folder, *(path for path in folder.rglob("*") if not path.is_symlink())]:
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture
def open_cache(before: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache in a folder that every user may look into."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        cache = Path(folder, "cache")
        cache.mkdir()
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        yield cache


def test_a_read_only_cache_with_everything_in_it(before: dict[str, Any], open_cache: Path) -> None:
    works(before)
    with read_only(open_cache):
        works(before)


def test_a_read_only_cache_that_lacks_something(before: dict[str, Any], open_cache: Path) -> None:
    with read_only(open_cache):
        fails(f"the cache cannot be written .*Make {open_cache} writable .* or set HF_HUB_CACHE to another folder")
    download_snapshot("alice/mass")
    with read_only(open_cache):
        fails(f"Base model '{BASE_ID}' could not be loaded: the cache cannot be written")
    works(before)


def test_a_cache_that_can_be_no_folder(before: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    fails("the cache cannot be written")


# -- interrupted -------------------------------------------------------------------------------------------------------


def test_an_interrupted_download_is_finished_by_the_next_call(
    hub: EmulatedHub, before: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = file_download.http_get

    def interrupted(url: str, file: Any, **options: Any) -> None:
        if "scorer.safetensors" in url:
            file.write(b"half")
            raise KeyboardInterrupt
        whole(url, file, **options)

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", interrupted)
        with pytest.raises(KeyboardInterrupt):
            MassModel.from_pretrained("alice/mass")
    done = hub.asked(WEIGHTS, "GET")
    works(before)
    assert done == hub.asked(WEIGHTS, "GET") == 1  # what was there is not downloaded again


def test_a_killed_download_is_finished_by_the_next_call(hub: EmulatedHub, before: dict[str, Any]) -> None:
    hub.fail(WEIGHTS, "slow", seconds=60.0, method="GET")
    environment = {
        **os.environ,
        "HF_HUB_CACHE": constants.HF_HUB_CACHE,
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
    }
    code = "from huggingface_hub import snapshot_download; snapshot_download('alice/mass')"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    wait = time.monotonic() + 60
    while not hub.asked(WEIGHTS, "GET") and time.monotonic() < wait:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    works(before)
