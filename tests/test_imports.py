"""The direction of imports, read from the source, and what importing pulls in."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import risfast

PACKAGE = Path(risfast.__file__).resolve().parent
# Lowest first; a module may import its own row's package and the rows above it. geometry <- steering <- ops.reference
# <- ops.api <- detect <- models <- losses <- localize <- evaluate <- train <- cli.
ORDER = [
    ("errors",),
    ("geometry",),
    ("steering",),
    ("setup",),
    ("sources",),
    ("ops",),
    ("covariance",),
    ("detect",),
    ("io",),
    ("simulate",),
    ("datasets",),
    ("models",),
    ("losses",),
    ("localize",),
    ("baselines",),
    ("evaluate",),
    ("report",),
    ("train",),
    ("tune",),
    ("cli",),
    ("__main__",),
]
LEVEL = {name: level for level, row in enumerate(ORDER) for name in row}
# Imports, within functions only, of what stands above: a file of options gives an object of the class that it is for,
# and what can be drawn or listed has a method that does it.
UPWARD = {
    ("risfast.io.options_file", "risfast.localize.pipeline"),
    ("risfast.sources", "risfast.io.export"),
    ("risfast.sources", "risfast.report.views"),
    ("risfast.setup", "risfast.report.views"),
    ("risfast.ops.form", "risfast.report.views"),
}
HEAVY = (
    "matplotlib",
    "optuna",
    "h5py",
    "scipy.optimize",
    "scipy.io",
    "risfast.cli",
    "risfast.train",
    "risfast.models",
    "risfast.kernels",
    "tyro",
    "safetensors",
)


def modules():
    """Dotted name and path of every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("risfast", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(name, *, lazily):
    """Dotted names that a module imports: at import time, or also inside functions when ``lazily``."""
    tree = ast.parse(MODULES[name].read_text())
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    pending, found = list(tree.body), set()
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*anchor, base] if base else anchor)
            # `from package import module` needs the module, not what the package's __init__ defines.
            found.update(f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names)
        elif is_type_checking(node):
            continue
        elif lazily or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))
    return found


def layer(name):
    """Second part of a dotted name within risfast, '' for the package itself, None for anything else."""
    parts = name.split(".")
    if parts[0] != "risfast":
        return None
    return parts[1] if len(parts) > 1 else ""


def run(code):
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment, check=False
    )


def test_the_walk_sees_the_package():
    assert {"risfast", "risfast.geometry", "risfast.steering", "risfast.ops"} <= set(MODULES)
    assert "risfast.geometry" in imports("risfast.steering", lazily=False)


@pytest.mark.parametrize("name", [name for name in MODULES if layer(name)])
def test_every_module_has_its_place_and_imports_only_downwards(name):
    own = layer(name)
    assert own in LEVEL, f"{name}: give risfast.{own} a place in ORDER"
    for imported in imports(name, lazily=True):
        other = layer(imported)
        if other is None or other in (own, "", "kernels"):
            continue
        if (name, imported) in UPWARD and imported not in imports(name, lazily=False):
            continue
        assert other in LEVEL, f"{name} imports {imported}, which has no place in ORDER"
        assert LEVEL[other] < LEVEL[own], f"{name} imports {imported}, which stands beside or above it"


def test_every_place_is_taken():
    assert set(LEVEL) == {layer(name) for name in MODULES} - {"", "kernels"}


def test_the_package_itself_imports_only_what_detection_needs_and_the_localizer_when_asked():
    def inside(lazily):
        return {layer(imported) for imported in imports("risfast", lazily=lazily)} - {None, ""}

    light = {"errors", "geometry", "tolerance", "sources", "setup", "detect"}
    assert inside(lazily=False) <= light
    assert inside(lazily=True) <= light | {"localize"}


def test_the_drawing_of_the_architecture_has_the_layers_of_the_imports():
    page = (PACKAGE.parent / "docs" / "pages" / "architecture.md").read_text()
    drawn = re.findall(r"^  │ (\w+) +\S", page, re.M)
    assert drawn == [name for row in reversed(ORDER) for name in row if name != "__main__"]


def test_no_module_imports_itself_round_a_corner():
    graph = {name: imports(name, lazily=False) & set(MODULES) - {name} for name in MODULES}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for imported in sorted(graph[name]):
            visit(imported)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_nothing_imports_the_command_line():
    for name in MODULES:
        if layer(name) not in ("cli", "__main__"):
            assert not {i for i in imports(name, lazily=True) if layer(i) == "cli"}, name


def test_kernels_are_reached_only_from_the_registrations_and_lazily():
    for name in MODULES:
        assert not {i for i in imports(name, lazily=False) if layer(i) == "kernels"}, name
        if {i for i in imports(name, lazily=True) if layer(i) == "kernels"}:
            assert name.startswith("risfast.ops.")
            assert "register" in name


def test_within_ops_the_reference_stands_below_the_registrations_and_those_below_the_api():
    for name in MODULES:
        if layer(name) != "ops":
            continue
        tail = name.rpartition(".")[2]
        forbidden = {"risfast.ops.api"} if tail not in ("ops", "api") else set()
        if "reference" in tail:
            forbidden |= {m for m in MODULES if "register" in m or m.endswith((".api", ".plan"))}
        assert not imports(name, lazily=True) & forbidden, name


def test_importing_the_operators_pulls_in_nothing_heavy():
    heavy = ", ".join(repr(name) for name in HEAVY)
    done = run(f"import risfast.ops, sys; print([m for m in ({heavy},) if m in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_package_and_its_command_line_are_there_before_torch():
    done = run("import risfast.cli, sys; print('torch' in sys.modules, 'Localizer' in dir(risfast))")
    assert (done.returncode, done.stdout.split()) == (0, ["False", "True"]), done.stderr


def test_every_name_of_the_package_is_the_one_of_its_module():
    done = run(
        "import risfast\nvalues = [getattr(risfast, name) for name in risfast.__all__]\n"
        "print(sum(v.__module__.startswith('risfast.') for v in values if hasattr(v, '__module__')))"
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(len(risfast.__all__) - 1)), done.stderr


def test_every_module_imports_without_a_word_or_a_warning():
    names = [name for name in MODULES if name != "risfast.__main__"]
    done = run("import " + ", ".join(names))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


STATE = """
def state():
    return (threading.active_count(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
            torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(),
            int(torch.get_rng_state().sum()))
"""


def test_importing_starts_no_threads_and_leaves_torch_as_it_was():
    done = run(
        f"import threading, torch\n{STATE}\nbefore = state()\nimport risfast.ops\nafter = state()\n"
        "assert before == after, (before, after)"
    )
    assert done.returncode == 0, done.stderr
