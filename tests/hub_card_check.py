"""What the Hub's `/api/validate-yaml` says of a README's metadata, from its public description.

https://github.com/huggingface/hub-docs/blob/main/modelcard.md: licence identifiers, ids of repositories, and the shape
of `model-index`. It shares no code with the package or the client.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c
ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2
llama3.3 llama4 grok2-community gemma unknown other
"""
LICENSES = frozenset(_LICENSES.split())
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
REPO_ID = re.compile(rf"(?!.*(?:--|\.\.)){_NAME}(?:/{_NAME})?")
LISTS = ("tags", "datasets", "language", "metrics")


def card_problems(content: str) -> tuple[list[str], list[str]]:
    """(errors, warnings) of a README."""
    found = re.match(r"\A---\s*\n(.*?\n)---\s*(?:\n|\Z)", content, re.DOTALL)
    if found is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"], []
    if not isinstance(data, dict):
        return ["metadata must be a mapping"], []
    errors, warnings = [], []
    license_ = data.get("license")
    for name in license_ if isinstance(license_, list) else [license_] if license_ is not None else []:
        if name not in LICENSES:
            errors.append(f'"license" must be one of the known licences, not {name!r}')
    if license_ == "other" and "license_name" not in data:
        warnings.append('"license_name" is missing for the license "other"')
    for key in ("base_model", "datasets"):
        value = data.get(key)
        for name in value if isinstance(value, list) else [value] if value is not None else []:
            if not isinstance(name, str) or not REPO_ID.fullmatch(name) or len(name) > 96:
                errors.append(f'"{key}" with value {name!r} is not valid. Use an ID from https://hf.co.')
    for key in LISTS:
        value = data.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        errors += [f'"{key}" must hold strings, not {each!r}' for each in values if not isinstance(each, str)]
    for key in ("library_name", "pipeline_tag"):
        if key in data and not isinstance(data[key], str):
            errors.append(f'"{key}" must be a string')
    return errors + _index_problems(data.get("model-index")), warnings


def _index_problems(index: Any) -> list[str]:
    if index is None:
        return []
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for m, model in enumerate(index):
        place = f'"model-index[{m}]'
        if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not model["name"]:
            errors.append(f'{place}.name" is required')
        results = model.get("results") if isinstance(model, dict) else None
        if not isinstance(results, list):
            errors.append(f'{place}.results" must be an array')
            continue
        for r, result in enumerate(results):
            errors += [f"{place}.results[{r}].{problem}" for problem in _result_problems(result)]
    return errors


def _result_problems(result: Any) -> list[str]:
    if not isinstance(result, dict):
        return ['" must be an object']
    errors = []
    if not isinstance(result.get("task"), dict) or not isinstance(result["task"].get("type"), str):
        errors.append('task.type" is required')
    dataset = result.get("dataset")
    if not isinstance(dataset, dict) or not all(isinstance(dataset.get(key), str) for key in ("type", "name")):
        errors.append('dataset" needs "type" and "name"')
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return [*errors, 'metrics" must be an array that is not empty']
    for n, metric in enumerate(metrics):
        if not isinstance(metric, dict) or not isinstance(metric.get("type"), str) or metric.get("value") is None:
            errors.append(f'metrics[{n}]" needs "type" and "value"')
    return errors
