"""The shape of the code: which folder may import which, how long modules and functions may be, tests as well, what
lies at the top.

    errors ← {core, tasks, store} ← lm ← methods ← engine ← {training, evaluation, lab} ← app ← cli ← {examples, spaces}

Each imports only what stands to its left. Sources are read, not imported, so a broken module is judged as well. The
checks are plain functions over a folder; the second half of this file shows on made-up folders that each can fail.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "hf_mass"
_GROUND = {"errors", "assets"}
_MODELS = _GROUND | {"core", "tasks", "store", "lm"}
_ENGINE = _MODELS | {"methods", "engine"}
LAYERS: dict[str, set[str]] = {
    "assets": set(),
    "errors": set(),
    "core": {"errors"},
    "tasks": _GROUND,
    "store": _GROUND,
    "lm": _MODELS - {"lm"},
    "methods": _MODELS,
    "engine": _ENGINE - {"engine"},
    "training": _ENGINE,
    "evaluation": _ENGINE,
    "lab": _ENGINE,
    "app": _ENGINE | {"evaluation", "lab"},
    "cli": _ENGINE | {"evaluation", "lab", "app"},
}
LAYERS["__main__"] = {"cli"}
# The package itself may offer the library's names, but nothing below it may take them from there, apart from these.
FACADE = set(LAYERS) - {"cli", "__main__"}
FROM_THE_TOP = {"__version__"}
# Outside of the package: users of it, never used by it.
OUTSIDE = {"examples", "spaces", "tests", "conftest"}
_HEAVY = {"transformers", "peft", "trl", "accelerate", "datasets", "huggingface_hub"}
FORBIDDEN: dict[str, set[str]] = {
    "errors": _HEAVY | {"torch", "numpy"},
    "core": _HEAVY,
    "tasks": {"torch", "transformers", "peft", "trl", "accelerate"},
    "store": {"transformers", "peft", "trl", "accelerate", "datasets"},
    **{name: {"trl"} for name in ("lm", "methods", "engine", "evaluation", "lab", "app", "cli")},
}
MAX_MODULE_LINES = 400  # fewer than
MAX_FUNCTION_LINES = 60  # fewer than
TOP_LEVEL = {
    *("pyproject.toml", "README.md", "LICENSE"),
    *(PACKAGE, "examples", "spaces", "tests", "model_cards"),
}


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One imported module, with the name taken from it ("" for `import module`)."""

    module: str
    name: str
    line: int
    in_function: bool


@dataclass(frozen=True)
class Module:
    """A source file of the package: its dotted name and what it imports."""

    name: str
    imports: tuple[Import, ...]

    @property
    def layer(self) -> str:
        """The folder or file right below the package; "" for the package's own `__init__`."""
        return _layer(self.name)


@cache  # no check changes what it reads
def read_package(root: Path) -> dict[str, Module]:
    modules = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = list(path.relative_to(root).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        package = name if is_package else name.rpartition(".")[0]
        modules[name] = Module(name, tuple(_imports(parsed(path), package)))
    return modules


def sources(root: Path) -> list[Path]:
    """Everything that is written in Python, the tests too."""
    return sorted(path for folder in (PACKAGE, "examples", "spaces", "tests") for path in (root / folder).rglob("*.py"))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _imports(tree: ast.Module, package: str) -> Iterator[Import]:
    """Every import, wherever it stands: in a function or under `if TYPE_CHECKING` it is knowledge all the same."""
    inner = {id(node) for outer in _functions(tree) for node in ast.walk(outer) if node is not outer}
    for node in ast.walk(tree):
        hidden = id(node) in inner
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, "", node.lineno, hidden)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, hidden)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__") and node.args:
            target = node.args[0]
            if isinstance(target, ast.Constant) and isinstance(target.value, str):
                yield Import(target.value, "", node.lineno, hidden)


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _layer(name: str) -> str:
    return [*name.split("."), ""][1]


def _target(found: Import, modules: dict[str, Module]) -> str:
    """The module that an import reaches: `from hf_mass.core import trees` reaches hf_mass.core.trees."""
    full = f"{found.module}.{found.name}" if found.name else found.module
    return full if full in modules else found.module


def _is_own(found: Import) -> bool:
    return found.module.split(".")[0] == PACKAGE


# -- checks: each returns what is wrong, one line per finding ----------------------------------------------------------


def upward_arrows(root: Path) -> list[str]:
    modules = read_package(root)
    wrong = []
    for module in modules.values():
        if module.layer and module.layer not in LAYERS:
            wrong.append(f"{module.name}: {module.layer!r} is no known layer")
            continue
        allowed = (LAYERS[module.layer] | {module.layer}) if module.layer else FACADE
        for found in filter(_is_own, module.imports):
            layer = _layer(_target(found, modules))
            # A name from the package itself: a sub-module that is not there to be read, or one of the facade's names.
            if layer not in allowed and found.name not in (FROM_THE_TOP if not layer else ()):
                wrong.append(f"{module.name}:{found.line} imports {_target(found, modules)} {found.name}".rstrip())
    return wrong


def outside_arrows(root: Path) -> list[str]:
    return [
        f"{module.name}:{found.line} imports {found.module}"
        for module in read_package(root).values()
        for found in module.imports
        if found.module.split(".")[0] in OUTSIDE
    ]


def cycles(root: Path) -> list[str]:
    modules = read_package(root)
    edges = {
        name: sorted({_target(found, modules) for found in module.imports if _is_own(found)} & modules.keys())
        for name, module in modules.items()
    }
    done: set[str] = set()
    found: list[str] = []

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append(" → ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for target in edges[name]:
                visit(target, [*trail, name])
            done.add(name)

    for name in edges:
        visit(name, [])
    return found


def hidden_imports(root: Path) -> list[str]:
    return [
        f"{module.name}:{found.line} imports {found.module} inside a function"
        for module in read_package(root).values()
        for found in module.imports
        if found.in_function and _is_own(found)
    ]


def forbidden_libraries(root: Path) -> list[str]:
    return [
        f"{module.name}:{found.line} imports {found.module}"
        for module in read_package(root).values()
        for found in module.imports
        if found.module.split(".")[0] in FORBIDDEN.get(module.layer, ())
    ]


def long_modules(root: Path) -> list[str]:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(root)}
    return [
        f"{path.relative_to(root)} has {lines} lines" for path, lines in lengths.items() if lines >= MAX_MODULE_LINES
    ]


def long_functions(root: Path) -> list[str]:
    wrong = []
    for path in sources(root):
        for function in _functions(parsed(path)):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines >= MAX_FUNCTION_LINES:
                wrong.append(f"{path.relative_to(root)}:{function.lineno} {function.name} has {lines} lines")
    return wrong


def stray_top_level(names: list[str]) -> list[str]:
    tops = {name.split("/")[0] for name in names}
    return sorted(top for top in tops if top not in TOP_LEVEL and not top.startswith("."))


CHECKS: list[Callable[[Path], list[str]]] = [
    upward_arrows,
    outside_arrows,
    cycles,
    hidden_imports,
    forbidden_libraries,
    long_modules,
    long_functions,
]


# -- the package -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_package(check: Callable[[Path], list[str]], root: Path) -> None:
    assert check(root) == []


def test_the_package_is_what_was_read(root: Path) -> None:
    modules = read_package(root)
    assert {"hf_mass.errors", "hf_mass.tasks.task", "hf_mass.evaluation.statistics"} <= modules.keys()
    reached = {_target(found, modules) for found in modules["hf_mass.evaluation.tables"].imports}
    assert "hf_mass.evaluation.statistics" in reached


def test_top_level(root: Path) -> None:
    if not (root / ".git").exists():
        pytest.skip("not a git checkout, so there is no list of what belongs to the repository")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert stray_top_level([name for name in listed.split("\0") if name]) == []


def test_arrows_only_point_left() -> None:
    # The table above is itself an order: what a layer may see, that layer's own targets may be seen as well.
    for layer, allowed in LAYERS.items():
        assert layer not in allowed
        for below in allowed & LAYERS.keys():
            assert layer not in LAYERS[below]


# -- the checks can fail -----------------------------------------------------------------------------------------------

BAD = {
    "an upward arrow": (upward_arrows, {"core/a.py": "from hf_mass.lm import b", "lm/b.py": ""}),
    "an upward arrow to a folder": (upward_arrows, {"core/a.py": "import hf_mass.training"}),
    "an upward arrow for types": (
        upward_arrows,
        {"tasks/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hf_mass.store.x import Y"},
    ),
    "core to tasks": (upward_arrows, {"core/a.py": "from hf_mass.tasks.t import T", "tasks/t.py": "T = 1"}),
    "tasks to core": (upward_arrows, {"tasks/a.py": "from hf_mass import core", "core/__init__.py": ""}),
    "training to evaluation": (upward_arrows, {"training/a.py": "import hf_mass.evaluation.tables"}),
    "a relative upward arrow": (upward_arrows, {"core/a.py": "from ..lm.b import c", "lm/b.py": "c = 1"}),
    "names from the package itself": (upward_arrows, {"core/a.py": "from hf_mass import Trainer"}),
    "the command line in the package": (upward_arrows, {"__init__.py": "from hf_mass.cli import main"}),
    "an unknown folder": (upward_arrows, {"utils/a.py": ""}),
    "an example": (outside_arrows, {"cli.py": "from examples.train import main"}),
    "a cycle": (
        cycles,
        {
            "core/a.py": "import hf_mass.core.b",
            "core/b.py": "from hf_mass.core import c",
            "core/c.py": "from . import a",
        },
    ),
    "a cycle through the package": (
        cycles,
        {
            "__init__.py": "from hf_mass.core.a import x\n__version__ = '1'",
            "core/a.py": "from hf_mass import __version__",
        },
    ),
    "an import in a function": (hidden_imports, {"core/a.py": "def f():\n    from hf_mass.core import b\n"}),
    "an import in a method": (
        hidden_imports,
        {"store/a.py": "class A:\n    async def f(self):\n        import hf_mass.lm.x\n"},
    ),
    "an import by name": (
        hidden_imports,
        {"store/a.py": "import importlib\ndef f():\n    return importlib.import_module('hf_mass.cli')\n"},
    ),
    "transformers in core": (forbidden_libraries, {"core/a.py": "from transformers.utils import logging"}),
    "torch in tasks": (forbidden_libraries, {"tasks/a.py": "def f():\n    import torch.nn as nn\n"}),
    "trl in lm": (forbidden_libraries, {"lm/a.py": "import trl"}),
    "a long module": (long_modules, {"core/a.py": "x = 1\n" * 400}),
    "a long module of tests": (long_modules, {"../tests/core/test_a.py": "x = 1\n" * 400}),
    "a long module of examples": (long_modules, {"../examples/a.py": "x = 1\n" * 400}),
    "a long function": (long_functions, {"core/a.py": "class A:\n    def f(self):\n" + "        x = 1\n" * 59}),
    "a long function of a test": (long_functions, {"../tests/test_a.py": "def test_a():\n" + "    x = 1\n" * 59}),
}


def write_package(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("case", BAD)
def test_bad_trees_are_found(case: str, tmp_path: Path) -> None:
    check, files = BAD[case]
    assert len(check(write_package(tmp_path, files))) == 1


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_good_tree_passes(check: Callable[[Path], list[str]], tmp_path: Path) -> None:
    files = {
        "__init__.py": "from hf_mass.errors import E\n",
        "errors.py": "class E(Exception): ...\n",
        "core/__init__.py": "from hf_mass.core.a import f\n",
        "core/a.py": "import torch\nfrom hf_mass.errors import E\ndef f():\n" + "    x = 1\n" * 58,
        "tasks/a.py": "from hf_mass.errors import E\n" + "x = 1\n" * 398,
        "lm/b.py": "import peft, transformers\nfrom hf_mass.core import a, f\nfrom hf_mass.tasks import a as t\n",
        "training/t.py": "import trl\nfrom hf_mass.lm.b import t\nfrom ..core.a import f\n",
        "store/h.py": "from hf_mass import errors\ndef f(name):\n    import json\n",
        "cli/__init__.py": "from hf_mass.store import h\nfrom hf_mass.lm import b\n",
        "__main__.py": "from hf_mass.cli import h\n",
        "../tests/test_a.py": "from hf_mass.cli import h\ndef test_a():\n" + "    x = 1\n" * 58,
    }
    assert check(write_package(tmp_path, files)) == []


def test_strays_at_the_top_are_found() -> None:
    assert stray_top_level(["README.md", ".ci/run", "hf_mass/a.py", "tests/a.py", "model_cards/x.md"]) == []
    assert stray_top_level(["setup.py", "docs/index.md", "hf_mass/a.py"]) == ["docs", "setup.py"]
