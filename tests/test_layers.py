"""The order of the rooms: a room imports only from rooms further left, and stays light where it must."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS: list[set[str]] = [
    {"recipe"},
    {"models"},
    {"data"},
    {"training"},
    {"synthesis", "evaluation"},
    {"distillation"},
    {"checkpoints"},
    {"inference"},
    {"planning"},
    {"serving"},
    {"clients", "server"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FORBIDDEN = {
    "planning": {"torch", "diffusers", "transformers", "peft", "models"},
    "checkpoints": {"distillation"},
}
BENCHMARKS = "fedkd.cli.benchmarks."  # imported when one runs, and not before
LEARNING = "fedkd.planning.learning."  # its policies are networks: torch inside functions
FLWR_FREE = set(LEVEL) - {"clients", "server", "cli"}
WIRE_FORMAT = ("server", "clients.payload")  # the one thing that server and clients share
HEAVY = {"torch", "diffusers", "transformers", "datasets", "flwr", "ray", "fastapi", "uvicorn", "peft"}
LIGHT = {"cli", "planning", "recipe", ""}  # what a verb's file may import before the verb runs
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "base", "core", "stuff"}
MAX_LINES = 400


def room_of(module: str) -> str:
    """The room of a dotted module: 'fedkd.models.flops' is in 'models'; '' for the package itself."""
    parts = module.split(".")
    return parts[0] if parts[0] != "fedkd" else (parts[1] if len(parts) > 1 else "")


def imports_of(tree: ast.AST, module: str, *, top_level_only: bool = False) -> set[str]:
    """Dotted names of all that a module imports, relative and `from fedkd import x` forms resolved."""
    nodes = _outside_functions(tree) if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: -node.level]
                base = ".".join([*package, base] if base else package)
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == "fedkd" else {base}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module" and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.add(name.value)
    return found


def _outside_functions(tree: ast.AST):
    """Statements that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _outside_functions(node)


def faults(source: str, module: str) -> list[str]:
    """What is wrong with the imports of one module, in words; empty when nothing is."""
    tree = ast.parse(source)
    room = room_of(module)
    if room not in LEVEL:
        return [] if room in ("", "__init__") else [f"{module}: no layer is given for the room '{room}'"]
    wrong = []
    for name in sorted(imports_of(tree, module)):
        target = room_of(name)
        outside = name.split(".")[0]
        ours = outside in ("fedkd", "clients", "server")
        if (room, name) == WIRE_FORMAT:
            continue
        if ours and target in LEVEL and target != room and LEVEL[target] >= LEVEL[room]:
            wrong.append(f"{module} imports {name}: '{target}' is not left of '{room}'")
        if ours and target in FORBIDDEN.get(room, set()):
            wrong.append(f"{module} imports {name}: '{room}' never imports '{target}'")
        learns = module.startswith(LEARNING) and name not in imports_of(tree, module, top_level_only=True)
        if not ours and outside in FORBIDDEN.get(room, set()) and not (learns and outside == "torch"):
            wrong.append(f"{module} imports {name}: '{room}' stays without {outside}")
        if outside == "flwr" and room in FLWR_FREE:
            wrong.append(f"{module} imports {name}: only clients, server and cli know Flower")
    if room == "cli" and not module.startswith(BENCHMARKS):
        for name in sorted(imports_of(tree, module, top_level_only=True)):
            outside = name.split(".")[0]
            heavy_room = outside == "fedkd" and room_of(name) in LEVEL and room_of(name) not in LIGHT
            if outside in HEAVY | {"clients", "server"} or heavy_room:
                wrong.append(f"{module} imports {name} at import time: import it inside the verb")
    return wrong


def sources() -> list[Path]:
    return sorted(path for folder in ("fedkd", "clients", "server") for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts)


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_a_module_imports_only_from_the_left(path):
    assert faults(path.read_text(encoding="utf-8"), module_of(path)) == []


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_a_module_is_short_well_named_and_says_what_it_is_for(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert path.stem not in VAGUE_NAMES
    assert ast.get_docstring(ast.parse(text)), "no docstring"


def test_there_is_something_to_check():
    assert {"fedkd", "clients", "server"} == {module_of(path).split(".")[0] for path in sources()}
    assert {room_of(module_of(path)) for path in sources()} >= set(LEVEL)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fedkd.models.x", "from fedkd.data.sources import load_images"),
        ("fedkd.models.x", "def f():\n    from fedkd.serving import edge"),
        ("fedkd.models.x", "from fedkd import distillation"),
        ("fedkd.models.x", "from ..data import sources"),
        ("fedkd.models.x", "import importlib\nimportlib.import_module('fedkd.cli.main')"),
        ("fedkd.synthesis.x", "import fedkd.evaluation.accuracy"),
        ("fedkd.evaluation.x", "from fedkd.synthesis.guard import nearest"),
        ("fedkd.checkpoints.x", "from fedkd.distillation.losses import task"),
        ("fedkd.planning.x", "import torch"),
        ("fedkd.planning.x", "from torch import nn"),
        ("fedkd.planning.x", "from diffusers import DDIMScheduler"),
        ("fedkd.planning.x", "from fedkd.models.flops import model_cost"),
        ("fedkd.serving.x", "from flwr.app import Message"),
        ("fedkd.recipe", "import flwr"),
        ("fedkd.distillation.x", "from server.rounds import phase"),
        ("clients.x", "from server.rounds import phase"),
        ("clients.x", "from fedkd.cli.console import fail"),
        ("fedkd.cli.x", "import torch"),
        ("fedkd.cli.x", "try:\n    from fedkd.models import flops\nexcept ImportError:\n    pass"),
        ("fedkd.cli.x", "from fedkd.evaluation import report"),
        ("server.x", "from clients.user import synthesise"),
        ("fedkd.attic.x", "import os"),
    ],
)
def test_a_wrong_import_is_found(module, source):
    assert faults(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fedkd.data.x", "from fedkd.models.pipeline import resolve_model\nfrom fedkd.recipe import Recipe"),
        ("fedkd.models.x", "from fedkd.models.pipeline import load_pipeline\nimport torch"),
        ("fedkd.models.x", "from fedkd import __version__"),
        ("fedkd.cli.x", "from fedkd import __version__\nfrom fedkd.cli.console import fail"),
        ("server.x", "from clients.payload import pack"),
        ("clients.x", "from flwr.app import Message\nfrom clients.payload import pack\nimport torch"),
        ("fedkd.cli.x", "def f():\n    import torch\n    from fedkd.serving.edge import create_app"),
        ("fedkd.planning.x", "from dataclasses import dataclass\nimport numpy"),
    ],
)
def test_a_right_import_is_left_alone(module, source):
    assert faults(source, module) == []
