"""The app's API, called by gradio_client alone; and the app on a model that an environment variable names."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from app_fixtures import SPACE, running_app
from gradio_client import Client
from gradio_client.exceptions import AppError
from model_fixtures import conventions_model
from packaging.requirements import Requirement
from packaging.version import Version
from repository import ROOT

import hf_mass

CONVENTIONS = (ROOT / "hf_mass/assets/examples/fruit-colours-by-a-hidden-rule.json").read_text()
ROWS = [{"input": [[1, 0, 2]], "output": [[2, 0, 1]]}, {"input": [[3, 4, 0]], "output": [[0, 4, 3]]}]
ARC = json.dumps({"train": [*ROWS, {"input": [[5, 6, 7]], "output": [[7, 6, 5]]}], "test": ROWS[:1]})


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("client") / "app.log"


@pytest.fixture(scope="module")
def client(log: Path) -> Iterator[Client]:
    work = log.parent
    command = [sys.executable, "-m", "hf_mass", "demo"]
    with running_app(work, command) as address:
        yield Client(address, verbose=False, download_files=str(work))


def test_solve(client: Client) -> None:
    outcome = client.predict(CONVENTIONS, "mass", settings={"samples": 24}, api_name="/solve")
    assert outcome["done"] and outcome["model"] == "conventions-mass"
    (before,) = outcome["before"]
    assert before["gold"] == "red" and not before["right"]
    assert outcome["after"] == [{"answer": "red", "gold": "red", "right": True}]
    (samples,) = outcome["samples"]
    assert len(samples) == 24 and sum(row["weight"] for row in samples) == pytest.approx(1, abs=1e-4)
    best = max(samples, key=lambda row: row["weight"])
    assert best["attribution"] > 0
    assert [loss["step"] for loss in outcome["losses"]] == [0, 1]


@pytest.mark.parametrize("method", ["none", "mass", "ttt", "both"])
def test_every_method_streams_what_it_does(client: Client, method: str) -> None:
    job = client.submit(ARC, method, settings={"max_examples": 8}, api_name="/solve")
    outcome = job.result(timeout=120)
    *before, last = job.outputs()
    assert outcome == last and all(not item["done"] for item in before)
    assert "Answering without adaptation" in [item["stage"] for item in before]
    assert bool(outcome["after"]) == (method != "none")
    assert any("Training on the demonstrations, step" in item["stage"] for item in before) == (
        method in ("ttt", "both")
    )


def test_the_same_seed_gives_the_same_outcome(client: Client) -> None:
    def outcome(seed: int) -> dict[str, object]:
        result = client.predict(ARC, "both", settings={"seed": seed, "max_examples": 8}, api_name="/solve")
        return {key: value for key, value in result.items() if key != "seconds"}

    assert outcome(3) == outcome(3)
    assert outcome(3)["samples"] != outcome(4)["samples"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"problem": "{bad"}, "could not be read as JSON"),
        ({"problem": ""}, "is empty"),
        ({"problem": "x" * 300_000}, "longer than 200,000 bytes"),
        ({"problem": ARC, "method": "magic"}, "method is 'magic'"),
        ({"problem": ARC, "model": "magic"}, "model is 'magic'"),
        ({"problem": ARC, "method": "platform:node"}, "method is 'platform:node'"),
        ({"problem": ARC, "settings": {"weigh_by": "magic"}}, "weigh_by is 'magic'"),
        ({"problem": ARC, "settings": {"samples": 10_000}}, "at most 32"),
        ({"problem": ARC, "settings": {"learning_rate": -1.0}}, "learning_rate is -1"),
        ({"problem": ARC, "settings": {"lora_r": 4096}}, "no setting 'lora_r' here"),
        ({"problem": ARC, "settings": "magic"}, "settings is 'magic'"),
        ({"problem": "what is 1 + 1?", "method": "ttt"}, "no solved examples"),
        ({"problem": CONVENTIONS, "method": "ttt"}, "cannot be trained on demonstrations"),
    ],
)
def test_bad_calls_are_refused_in_words(client: Client, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(AppError, match=re.escape(words)):
        client.predict(**arguments, api_name="/solve")


def test_the_api_page_names_the_settings(client: Client) -> None:
    (endpoint,) = client.view_api(return_format="dict", print_info=False)["named_endpoints"].values()  # type: ignore[index]
    assert [entry["parameter_name"] for entry in endpoint["parameters"]] == ["problem", "method", "model", "settings"]
    assert [entry["parameter_has_default"] for entry in endpoint["parameters"]] == [False, True, True, True]
    assert "max_examples: Training examples of one task at most." in endpoint["description"]


def asked_by_a_page(address: str, number: int, inputs: list[Any]) -> list[dict[str, Any]]:
    """What a page is sent for an event, message by message."""
    body = {"fn_index": number, "data": inputs, "session_hash": "page"}
    httpx.post(f"{address}/gradio_api/queue/join", json=body).raise_for_status()
    messages: list[dict[str, Any]] = []
    with httpx.stream("GET", f"{address}/gradio_api/queue/data?session_hash=page", timeout=120) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                messages.append(json.loads(line.removeprefix("data:")))
                if messages[-1]["msg"] == "process_completed":
                    break
    return messages


def test_what_a_page_does_without_a_browser(client: Client) -> None:
    """The controls' values reach the adaptation, each under its own name."""
    address, config = client.src.rstrip("/"), client.config
    names = {each["id"]: each["props"].get("elem_id") for each in config["components"]}
    events = {event["api_name"]: event for event in config["dependencies"]}
    *_, first = asked_by_a_page(address, events["show_text"]["id"], [ARC, "grids-small", "", "", "", True])
    updates = zip(events["show_text"]["outputs"], first["output"]["data"], strict=True)
    values = {names[n]: update["value"] for n, update in updates if isinstance(update, dict) and "value" in update}
    assert values["setting-samples"] == 8 and values["setting-max_examples"] == 40
    values |= {"model": "grids-small", "method": "both", "setting-samples": 3, "setting-max_examples": 6}
    values |= {"setting-weigh_by": "uniform", "setting-vote": False, "setting-seed": 0}
    *messages, last = asked_by_a_page(
        address, events["adapt"]["id"], [values.get(names[n]) for n in events["adapt"]["inputs"]]
    )
    status, answers, losses, samples, download, *buttons, earlier = last["output"]["data"]
    assert "Done in" in status and "After" in answers and "<svg" in losses, last
    assert samples.count("<tr>") == 1 + 3 and download["visible"]
    assert [button["interactive"] for button in buttons] == [True, False] and earlier == ""
    assert sum(each["msg"] == "process_generating" for each in messages) >= 3


def test_what_no_page_sends_is_refused_in_a_line(client: Client, log: Path) -> None:
    """By name, value and cure on the page, and without a traceback in the log."""
    address, events = client.src.rstrip("/"), {event["api_name"]: event for event in client.config["dependencies"]}

    def refused(name: str, *values: Any) -> str:
        (*_, last) = asked_by_a_page(address, events[name]["id"], list(values))
        return str(last["output"]["error"])

    def file(path: Any) -> list[Any]:
        return [{"path": path, "meta": {"_type": "gradio.FileData"}}, "automatic", "", "", "", "", True]

    assert refused("show_text", ARC, "<b>", "", "", "", True).startswith(
        "Model is '&lt;b&gt;'; choose one of ['automatic', 'grids-"
    )
    assert refused("show_text", ARC) == "show_text takes 6 values, got 1. Give each."
    settings = ["ttt", "automatic", None, 2, 1.0, "automatic", 10, 1, 0.001, True, False, 0]
    assert refused("adapt", None, *settings) == "MASS: samples is None; choose a number from 1 to 32."
    for path, name in (("/etc/passwd", "passwd"), ("../x.csv", "x.csv"), ("https://localhost/x.csv", "x.csv")):
        assert refused("show_file", *file(path)).startswith(f"The file is '{name}'; upload one that ends in one of")
    for path, body in (
        ("queue/join", {"data": [], "fn_index": 99, "session_hash": "page"}),
        ("call/nothing", {"data": []}),
        ("call/v2/solve", {"nothing": 3}),
    ):
        answer = httpx.post(f"{address}/gradio_api/{path}", json=body)
        assert answer.status_code == 400 and "could not be answered" in answer.json()["error"]
    assert "Traceback" not in log.read_text()


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    mass = conventions_model(trained=True)
    mass.save_pretrained(tmp_path / "mine")
    with running_app(tmp_path, HF_MASS_MODEL=str(tmp_path / "mine")) as address:
        outcome = Client(address, verbose=False).predict(CONVENTIONS, "mass", api_name="/solve")
    assert outcome["model"] == str(tmp_path / "mine") and outcome["after"][0]["answer"]


def test_the_space_is_what_a_space_needs() -> None:
    _, front, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    settings = yaml.safe_load(front)
    assert settings["sdk"] == "gradio" and (SPACE / settings["app_file"]).is_file()
    assert len(settings["short_description"]) <= 60
    (requirement,) = map(Requirement, (SPACE / "requirements.txt").read_text().split())
    assert requirement.name == "hf_mass" and requirement.extras == {"demo"}
    assert Version(hf_mass.__version__) in requirement.specifier
    project = (ROOT / "pyproject.toml").read_text()
    (gradio,) = (Requirement(text) for text in re.findall(r'"(gradio[^"]*)"', project))
    assert Version(settings["sdk_version"]) in gradio.specifier
