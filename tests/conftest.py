"""What every test shares: one seed, one thread, no network, a Hugging Face cache of its own."""

from __future__ import annotations

import gc
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from repository import ROOT


def _free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]


# The libraries make some million objects that stay: looking through them for garbage again and again would take a sixth
# of the time of starting, and more than a second in each full collection afterwards. See `pytest_collection_finish`.
gc.disable()

# Read when the libraries are imported, so set before any of them is.
_CACHE = tempfile.mkdtemp(prefix="hf_mass_tests_")
_HUB_PORT = _free_port()  # where the emulated Hub answers, for tests that ask for it
os.environ.update(
    HF_HOME=os.path.join(_CACHE, "huggingface"),
    HF_ENDPOINT=f"http://127.0.0.1:{_HUB_PORT}",
    HF_HUB_DISABLE_XET="1",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="disabled",
)
for _name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "TRANSFORMERS_CACHE"):
    os.environ.pop(_name, None)

import hypothesis
import numpy as np
import pytest
import torch
from hub_emulator import EmulatedHub
from hub_server import serving
from huggingface_hub import constants
from model_forms import tiny_llama, write_gguf

import hf_mass
from hf_mass import LanguageModel

# The same examples on every run. HYPOTHESIS_PROFILE=explore looks for new ones.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=500)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: none is left to one process while the other has nothing to do."""
    slow = {item.path for item in items if {"slow", "real"} & {mark.name for mark in item.iter_markers()}}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is there when the first test begins is no garbage."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The models are tiny: one thread is faster than several, and its sums are reproducible."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the libraries under test draw from the legacy generator
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Refuse connections that leave this machine; processes of one test may still talk to each other."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(str(host)):
            raise OSError(f"a test tried to reach {host}; tests run without a network")
        connect(self, address)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_only)
        yield


def _is_local(host: str) -> bool:
    own = {"localhost", "::1", "0.0.0.0", "::", socket.gethostname()}
    return host in own or host.startswith(("127.", "::ffff:127."))


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real benchmark data, kept beside the checkout; tests that need it skip where it is absent."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no benchmark data at {path}")
    return path


@pytest.fixture(scope="session")
def hub_server() -> Iterator[EmulatedHub]:
    """The emulated Hub at HF_ENDPOINT, which nobody reaches while HF_HUB_OFFLINE is set."""
    with serving(EmulatedHub(_HUB_PORT)) as emulated:
        yield emulated


@pytest.fixture
def hub(hub_server: EmulatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmulatedHub:
    """An empty Hub, an empty cache, and alice logged in, for this one test; waiting between retries takes no time."""
    hub_server.reset()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    return hub_server


# -- a real language model ---------------------------------------------------------------------------------------------


def from_variable(name: str) -> Path:
    """The path that an environment variable holds; the test skips where it is not set, and says why."""
    if not os.environ.get(name):
        pytest.skip(f"{name} is not set: .ci/run makes the real model and sets it, where it can be made")
    return Path(os.environ[name])


@pytest.fixture(scope="session")
def real_folder() -> Path:
    """The folder of a real language model: SmolLM2-135M-Instruct, dequantised from Q4_1."""
    return from_variable("HF_MASS_REAL_MODEL")


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """The GGUF file that it was made from."""
    return from_variable("HF_MASS_REAL_GGUF")


@pytest.fixture(scope="module")
def real_model(real_folder: Path) -> LanguageModel:
    """The real model, loaded once: tests on it lie in one file, which one process runs."""
    return hf_mass.load(real_folder)


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A GGUF file of a tiny Llama."""
    pytest.importorskip("gguf", reason="gguf is not installed (hf_mass[gguf])")
    (tmp_path / "gguf").mkdir()
    return write_gguf(tmp_path / "gguf" / "tiny.gguf", tiny_llama())
