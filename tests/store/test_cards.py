"""Model cards: the Hub's client reads them, they say no more than the result files do, and what they show runs."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import FLIPS
from hub_emulator import EmulatedHub
from huggingface_hub import ModelCard, metadata_load
from repository import ROOT

from hf_mass.errors import CheckpointError, DataError
from hf_mass.evaluation.cards import make_card, write_card
from hf_mass.evaluation.statistics import Interval
from hf_mass.evaluation.tables import ResultRow, ResultTable
from hf_mass.methods.mass_card import mass_card
from hf_mass.methods.mass_settings import InnerConfig, MassConfig
from hf_mass.store.card import NOT_MEASURED, TEMPLATE, build_card, hub_id, write_basic_card
from hf_mass.store.shipped import ASSETS, name_base_portably, resolve_shipped, shipped_name, shipped_names
from research.conventions import report as conventions_report

CARDS = ROOT / "model_cards"
SHIPPED = ASSETS / "conventions-mass"
RESULTS = ROOT / "examples" / "results" / "conventions-mass" / "results.json"
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


def section(text: str, title: str) -> str:
    """What stands under a heading."""
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def python_of(text: str) -> str:
    """The first block of Python."""
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found
    return found.group(1)


def unfounded(text: str, table: ResultTable) -> list[str]:
    """What a card says about results that its result file does not say. Table cells, metadata, then loose numbers."""
    card = ModelCard(text)
    wrong = [
        f"{result.metric_name}/{result.dataset_split}: {result.metric_value} {result.metric_args}"
        for result in card.data.eval_results or []
        if {"mean": result.metric_value, **(result.metric_args or {})}
        != asdict(table.interval(str(result.metric_name), str(result.dataset_split)))
    ]
    shown, cost = section(card.text, "Results"), section(card.text, "Cost per problem")
    known = {f"| {row.method} | {row.sampled_tokens:.0f} | {row.latency_s:.3g} |" for row in table if row.latency_s}
    known |= set(table.to_markdown().splitlines())
    known |= {f"- {row.method}; {name}: {value:g}" for row in table for name, value in row.extra.items()}
    known |= {"| method | sampled tokens | seconds |", "| --- | ---: | ---: |", f"    {table.meta['command']}"}
    loose = [line for line in (shown + cost).splitlines() if line not in known]
    told = set(NUMBER.findall(" ".join(str(value) for value in table.meta.values())))
    return wrong + [number for line in loose for number in NUMBER.findall(line) if number not in told]


# -- cards that ship ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(set(CARDS.glob("*.md")) - {CARDS / "template.md"}), ids=lambda path: path.name)
def test_the_client_reads_every_card(path: Path) -> None:
    card = ModelCard.load(path)
    assert card.data.license == "apache-2.0" and "hf_mass" in card.data.tags
    assert card.data.library_name == metadata_load(path)["library_name"]
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    for heading in ("How to load", "Limits and risks"):
        assert section(card.text, heading).strip(), heading
    assert len([line for line in python_of(section(card.text, "How to load")).splitlines() if line.strip()]) <= 5


def test_the_hub_accepts_every_card(hub: EmulatedHub, tmp_path: Path) -> None:
    basic = write_basic_card(tmp_path, mass_card(MassConfig(), base_model="Qwen/Qwen2.5-0.5B", license="mit"))
    paths = [basic, *(set(CARDS.glob("*.md")) - {CARDS / "template.md"})]
    for path in paths:
        ModelCard.load(path).validate()
    assert hub.asked("/api/validate-yaml", "POST") == len(paths) and hub.card_warnings == []
    with pytest.raises(ValueError, match="licence"):
        build_card(mass_card(MassConfig(), base_model="gpt2", license="mine")).validate()


def test_links_of_cards_lead_somewhere() -> None:
    for path in CARDS.glob("*-base.md"):
        for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
            assert target.startswith("https://") or (CARDS / target).exists(), target


def test_template_is_the_packaged_one() -> None:
    assert (CARDS / "template.md").resolve() == TEMPLATE.resolve()


def test_evaluation_results_survive_the_metadata() -> None:
    table, card = ResultTable.load(RESULTS), ModelCard.load(CARDS / "conventions-mass.md")
    found = {(result.metric_name, result.dataset_split): result for result in card.data.eval_results}
    own = [row.method for row in table if row.method.startswith("MASS,")]
    assert found.keys() == {(method, split) for method in own for split in table.splits}
    assert {"MASS, no adaptation", "MASS, scored"} <= set(own)
    for (method, split), result in found.items():
        interval = table.interval(method, split)
        assert result.metric_value == interval.mean and result.metric_args["n"] == interval.n
    again = ModelCard(str(card)).data.eval_results
    assert again == card.data.eval_results


def test_the_card_is_made_from_the_result_file() -> None:
    table = ResultTable.load(RESULTS)
    text = (CARDS / "conventions-mass.md").read_text()
    assert unfounded(text, table) == []
    assert table.to_markdown() in text and f"\n    {table.meta['command']}\n" in text
    assert "/work" not in text and str(ROOT) not in text


def test_the_card_is_what_is_made_today(tmp_path: Path) -> None:
    made = conventions_report.write_adapter_card(copied(tmp_path), RESULTS, repo_id="conventions-mass")
    assert made.read_text() == (CARDS / "conventions-mass.md").read_text()


def test_a_changed_digit_is_found() -> None:
    table = ResultTable.load(RESULTS)
    text = (CARDS / "conventions-mass.md").read_text()
    row = next(line for line in table.to_markdown().splitlines() if line.startswith("| MASS, scored |"))
    cost = next(line for line in section(text, "Cost per problem").splitlines() if line.startswith("| MASS, scored |"))
    value = f"value: {table.interval('MASS, scored', 'families held out').mean}"
    extra = next(line for line in text.splitlines() if line.startswith("- MASS, scored; inner rate"))
    changed = 0
    for line in (row, cost, value, extra):
        for match in re.finditer(r"\d", line):
            digit = str((int(match.group()) + 1) % 10)
            other = line[: match.start()] + digit + line[match.end() :]
            assert text.count(line) == 1 and unfounded(text.replace(line, other), table), other
            changed += 1
    assert changed > 40
    assert unfounded(text.replace("There is one seed", "Reaches 99.9% and there is one seed"), table) == ["99.9"]


def test_cards_of_bases_say_what_pretraining_measured() -> None:
    measured = section((CARDS / "grids-base.md").read_text(), "Measured")
    logs = [json.loads((ASSETS / n / "pretraining.json").read_text())["log"][-1] for n in ("grids-base", "grids-small")]
    names = ("trained_1d_full", "held_out_1d_full", "trained_2d_full", "held_out_2d_full", "trained_1d_small")
    expected = [[log[name] for log in logs] for name in (*names, "trained_2d_small")]
    rows = [NUMBER.findall(line.split("|", 2)[2]) for line in measured.splitlines() if re.search(r"\| 0\.\d", line)]
    assert [len(row) for row in rows] == [2] * len(expected)
    for row, values in zip(rows, expected, strict=True):  # the log has four digits of its own, the card three
        assert all(abs(float(shown) - value) <= 6e-4 for shown, value in zip(row, values, strict=True)), row
    base = (CARDS / "conventions-base.md").read_text().split("\n## Measured", 1)[1].split("\n## ", 1)[0]
    found = json.loads((ASSETS / "conventions-base" / "pretraining.json").read_text())["validation"].values()
    assert re.findall(r"\| (\d\.\d{3}) \|", base) == [f"{value:.3f}" for value in found]


# -- the adapter that ships --------------------------------------------------------------------------------------------


def test_the_shipped_adapter_answers_as_its_card_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # found by name, from anywhere
    code = python_of((CARDS / "conventions-mass.md").read_text())
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert capsys.readouterr().out.strip().splitlines()[-1] == "green -> white"  # white is right
    assert scope["mass"].model.peft_config["default"].base_model_name_or_path == str(ASSETS / "conventions-base")


@pytest.mark.parametrize(
    ("name", "file", "content", "right"),
    [
        ("grids-base", "task.json", json.dumps(FLIPS), "2 1\n4 3"),
        ("strings-base", "rows.csv", "input,output\n" + "".join(f"{x},{x.upper()}\n" for x in "abcdefgh"), None),
    ],
)
def test_bases_load_as_their_cards_show(
    name: str,
    file: str,
    content: str,
    right: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(file).write_text(content)
    scope: dict[str, Any] = {}
    exec(python_of((CARDS / f"{name}.md").read_text()), scope)
    _, after = capsys.readouterr().out.split("->")
    assert after.strip() == (right or scope["task"].answer)


def test_what_ships_names_no_path_and_is_small() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    for name in ("generator", "inner"):
        named = json.loads((SHIPPED / name / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert named == "conventions-base"
    assert {"conventions-base", "conventions-mass", "grids-base"} <= set(shipped_names())


def test_shipped_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    there = ASSETS / "grids-base"
    for named in ("grids-base", str(there), "/elsewhere/site-packages/hf_mass/assets/grids-base"):
        assert shipped_name(named) == "grids-base" and resolve_shipped(named) == there
    for named in ("somebody/grids-base", "/elsewhere/grids-base", "gpt2", "", None):
        assert shipped_name(named) is None and resolve_shipped(named) == named
    (tmp_path / "grids-base").mkdir()  # a folder of the caller's own comes first
    assert shipped_name("grids-base") is None
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(there), "r": 1}))
    name_base_portably(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 1


# -- making cards ------------------------------------------------------------------------------------------------------


def test_a_basic_card_claims_nothing(tmp_path: Path) -> None:
    details = {"base_model": "Qwen/Qwen2.5-0.5B", "tags": ["mine"], "datasets": ["openai/gsm8k"]}
    path = write_basic_card(tmp_path, mass_card(MassConfig(), **details))
    card = ModelCard.load(path)
    assert card.data.eval_results is None and "model-index" not in metadata_load(path)
    assert card.data.base_model == "Qwen/Qwen2.5-0.5B" and card.data.datasets == ["openai/gsm8k"]
    assert {"mine", "mass", "test-time-training"} <= set(card.data.tags) and card.data.license is None
    assert NOT_MEASURED in section(card.text, "Results")
    assert not NUMBER.findall(section(card.text, "Results") + section(card.text, "Cost per problem"))
    assert "Not stated" in section(card.text, "Licence")
    compile(python_of(card.text), "card", "exec")
    write_basic_card(tmp_path, mass_card(MassConfig(samples=7), base_model="gpt2"))
    assert ModelCard.load(path).data.base_model == "gpt2" and "| 7 |" in path.read_text()


def test_a_basic_card_leaves_others_alone(tmp_path: Path) -> None:
    path = write_card(copied(tmp_path), RESULTS)
    before = path.read_text()
    assert write_basic_card(path.parent, mass_card(MassConfig())).read_text() == before
    path.write_text("My own words.")
    assert write_basic_card(path.parent, mass_card(MassConfig())).read_text() == "My own words."
    path.write_text("[More Information Needed]")
    assert NOT_MEASURED in write_basic_card(path.parent, mass_card(MassConfig())).read_text()


def copied(folder: Path) -> Path:
    """The files that a card is made from."""
    (folder / "generator").mkdir(exist_ok=True)
    for name in ("mass_config.json", "generator/adapter_config.json"):
        (folder / name).write_text((SHIPPED / name).read_text())
    return folder


def test_local_paths_and_tokens_stay_private(tmp_path: Path) -> None:
    secret = "hf_" + "a" * 34
    for command in (f"train.py --hub_token {secret} --lr 1", f"train.py --hub_token=abc --x {secret}"):
        results = one_row(tmp_path, command=command)
        text = str(make_card(copied(tmp_path), results, base_model="/home/me/models/tiny"))
        assert secret not in text and "abc" not in text and "/home/me" not in text
        assert "`tiny`, a local folder" in text and "base_model:" not in text
    assert hub_id("/home/me/tiny") is None and hub_id("gpt2") == "gpt2" and hub_id(str(tmp_path)) is None


def one_row(folder: Path, **meta: Any) -> Path:
    row = ResultRow("plain", {"held out": Interval(0.5, 0.4, 0.6, 9, 1)})
    return ResultTable("A title", ("held out",), (row,), meta).save(folder / "results.json")


def test_what_a_result_file_lacks_is_said_to_be_absent(tmp_path: Path) -> None:
    card = make_card(copied(tmp_path), one_row(tmp_path))
    assert "does not say by which command" in section(card.text, "Results")
    assert section(card.text, "Cost per problem").strip() == "Not measured."
    assert section(card.text, "Training data").strip() == "Not stated."
    (result,) = card.data.eval_results
    assert (result.metric_name, result.metric_value, result.dataset_type) == ("plain", 0.5, "a-title")


def test_text_from_files_cannot_break_the_card(tmp_path: Path) -> None:
    results = one_row(tmp_path, command="x\n```\n---\n{{ 7 * 7 }}\n## Results\n# y")
    card = make_card(copied(tmp_path), results, training_data="{{ 7 * 7 }}", title="a: [b] 'c'", tags=["a: b"])
    assert "49" not in card.text and "    {{ 7 * 7 }}\n    ## Results\n" in card.text
    assert ModelCard(str(card)).data.tags[-1] == "a: b"
    config = MassConfig(inner=InnerConfig(target_modules=("a|b",)))
    assert "a\\|b" in str(build_card(mass_card(config, base_model="gpt2")))


def test_the_card_of_one_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "meta-llama/Llama-3.2-1B", "r": 16, "lora_alpha": 32})
    )
    card = make_card(tmp_path, repo_id="me/one-task")
    assert card.data.base_model == "meta-llama/Llama-3.2-1B" and "mass" not in card.data.tags
    code = python_of(card.text)
    assert 'PeftModel.from_pretrained(base, "me/one-task")' in code and "| r | 16 |" in card.text
    assert len([line for line in code.splitlines() if line.strip()]) == 4
    assert "| learning_rate | 0.002 |" in str(make_card(tmp_path, settings={"learning_rate": 2e-3}))


def test_bad_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder"):
        make_card(tmp_path / "none")
    with pytest.raises(CheckpointError, match="no saved MassModel and no PEFT adapter"):
        make_card(tmp_path)
    folder = copied(tmp_path)
    with pytest.raises(DataError, match=r"nothing\.json cannot be read"):
        make_card(folder, tmp_path / "nothing.json")
    for content in ("{", "[]", '{"format": 9}', '{"format": 1}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DataError, match=r"bad\.json"):
            make_card(folder, tmp_path / "bad.json")
    row = ResultRow("plain", {"s": Interval(float("nan"), 0.0, 1.0, 1, 1)})
    with pytest.raises(DataError, match="no finite number"):
        make_card(folder, ResultTable("t", ("s",), (row,)).save(tmp_path / "nan.json"))
    with pytest.raises(DataError, match="no row 'other'"):
        make_card(folder, RESULTS, methods=["other"])
    (folder / "generator" / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json holds a list"):
        make_card(folder)
