"""Public docstrings, read from the source: parameters, results, fields and errors, by name and in order."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import risfast

PACKAGE = Path(risfast.__file__).resolve().parent
# Modules, and folders with a slash at their end, that are not documented in full yet, and why. It may only shrink.
PENDING = {}

Function = ast.FunctionDef | ast.AsyncFunctionDef
RECORDS = ("NamedTuple", "Protocol")
PROPERTIES = ("property", "cached_property")


def sections(text):
    """Titles of the sections of a numpydoc docstring, and the names that each of them lists, in order."""
    lines = inspect.cleandoc(text).splitlines()
    found, title = {}, None
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if line and after and set(after) == {"-"} and len(after) == len(line):
            title = line
            found[title] = []
        elif title and re.match(r"[\w*]", line):  # at the margin: an entry, not its description
            found[title] += [name.strip() for name in line.split(" : ")[0].split(",")]
    return found


def docstring(node):
    text = ast.get_docstring(node, clean=False)
    return None if text is None else sections(text)


def decorators(node):
    return {ast.unparse(d.func if isinstance(d, ast.Call) else d).rpartition(".")[2] for d in node.decorator_list}


def is_public(node):
    return not node.name.startswith("_")


def parameters(node, *, bound):
    """Names as numpydoc writes them, with their stars; ``bound`` leaves out self or cls."""
    a = node.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args)][bound:]
    names += [f"*{a.vararg.arg}"] if a.vararg else []
    names += [arg.arg for arg in a.kwonlyargs]
    names += [f"**{a.kwarg.arg}"] if a.kwarg else []
    return names


def raised(node):
    """Names of the exceptions that a function raises itself; those of functions within it are theirs."""
    pending, found = list(node.body), set()
    while pending:
        inner = pending.pop()
        if isinstance(inner, Function | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call):
            found.add(ast.unparse(inner.exc.func).rpartition(".")[2])
        pending.extend(ast.iter_child_nodes(inner))
    return found - {"AssertionError"}  # what cannot happen


def missing_errors(found, errors):
    return [f"raises {name}, which Raises does not name" for name in sorted(errors - set(found.get("Raises", [])))]


def faults_of_function(node, *, bound=False):
    """What the docstring of a function or method leaves out."""
    found = docstring(node)
    if found is None:
        return ["has no docstring"]
    if decorators(node) & set(PROPERTIES):  # takes nothing, and its one line says what it gives
        return []
    faults, expected, given = [], parameters(node, bound=bound), found.get("Parameters", [])
    if sorted(expected) != sorted(given):
        faults.append(f"takes {expected}, Parameters names {given}")
    result = ast.unparse(node.returns) if node.returns else "nothing it declares"
    if expected and result not in ("None", "NoReturn") and not found.keys() & {"Returns", "Yields"}:
        faults.append(f"gives {result}, and has neither Returns nor Yields")
    return faults + missing_errors(found, raised(node))


def record_fields(node):
    """Public fields of a dataclass, named tuple or protocol, and whether a text of its own follows each; else None."""
    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    if "dataclass" not in decorators(node) and not bases & set(RECORDS):
        return None
    fields = {}
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(item, ast.AnnAssign) and not item.target.id.startswith("_"):
            fields[item.target.id] = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    return fields


def faults_of_class(node):
    """What the docstring of a class leaves out: the fields of a record, or what its ``__init__`` takes."""
    found = docstring(node)
    if found is None:
        return ["has no docstring"]
    methods = {item.name: item for item in node.body if isinstance(item, Function)}
    made = [methods[name] for name in ("__init__", "__post_init__") if name in methods]
    faults = missing_errors(found, set().union(*(raised(method) for method in made)))
    given, attributes = found.get("Parameters", []), found.get("Attributes", [])
    fields = record_fields(node)
    if fields is None:
        expected = parameters(methods["__init__"], bound=True) if "__init__" in methods else []
        return faults + ([f"takes {expected}, Parameters names {given}"] if sorted(expected) != sorted(given) else [])
    expected = [name for name, described in fields.items() if not described]
    named = [name for name in (*given, *attributes) if name in expected]  # attributes may be more than fields
    if sorted(named) != sorted(expected) or set(given) - set(fields):
        faults.append(f"has the fields {expected}, Parameters and Attributes name {[*given, *attributes]}")
    return faults


def faults_of_source(source):
    """Everything that the public docstrings of a module leave out, one line each."""
    faults = []
    for node in ast.parse(source).body:
        if isinstance(node, Function) and is_public(node):
            faults += [f"{node.name} {fault}" for fault in faults_of_function(node)]
        elif isinstance(node, ast.ClassDef) and is_public(node):
            faults += [f"{node.name} {fault}" for fault in faults_of_class(node)]
            for method in node.body:
                if isinstance(method, Function) and is_public(method) and "overload" not in decorators(method):
                    bound = "staticmethod" not in decorators(method)
                    faults += [
                        f"{node.name}.{method.name} {fault}" for fault in faults_of_function(method, bound=bound)
                    ]
    return faults


MODULES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


def excused(name):
    return name in PENDING or any(name.startswith(folder) for folder in PENDING if folder.endswith("/"))


@pytest.mark.parametrize("name", [name for name in MODULES if not excused(name)])
def test_public_docstrings_name_what_is_taken_given_and_raised(name):
    faults = faults_of_source(MODULES[name].read_text())
    assert not faults, "\n".join([f"{name}:", *faults])


@pytest.mark.parametrize("entry", PENDING)
def test_a_module_that_is_documented_in_full_is_not_pending(entry):
    there = [
        path for name, path in MODULES.items() if name == entry or (entry.endswith("/") and name.startswith(entry))
    ]
    assert there, f"{entry} is gone: take it off PENDING"
    assert any(faults_of_source(path.read_text()) for path in there), f"{entry} is documented: take it off PENDING"


FULL = '''
def scaled(values, factor, *more, unit="m", **rest) -> float:
    """Values times a factor.

    Parameters
    ----------
    values : real tensor, shape (B, 3)
        In metres: a colon, or a comma, in a description names nothing.
    factor, unit
        As :func:`other` takes them.
    *more, **rest
        Handed on.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        Always.
    """
    def inner():
        raise KeyError("its own")
    if values:
        raise TypeError("here")
    raise errors.ValueError("there") from None


@dataclass
class Box:
    """A box.

    Parameters
    ----------
    width, height : float
        Metres.

    Raises
    ------
    ValueError
        A side is negative.
    """

    width: float
    height: float
    colour: str = "red"
    """What it is painted in."""
    _hidden: int = 0

    def __post_init__(self):
        raise ValueError("negative")

    @property
    def area(self) -> float:
        """Square metres."""

    def halves(self) -> tuple:
        """Takes nothing, and says what it gives in its one line."""

    @classmethod
    def cube(cls, side) -> None:
        """One with equal sides.

        Parameters
        ----------
        side : float
        """


class Counter:
    """Counts.

    Parameters
    ----------
    start : int
    """

    def __init__(self, start):
        pass
'''


def test_a_full_docstring_has_no_faults():
    assert faults_of_source(FULL) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("factor, unit\n", "factor\n", "scaled takes"),
        ("*more, **rest", "more, rest", "scaled takes"),
        ("factor, unit\n", "factor, unit, values\n", "scaled takes"),
        ("    Returns\n    -------\n    float\n", "", "scaled gives float"),
        ("    TypeError, ValueError\n        Always", "    TypeError\n        Always", "scaled raises ValueError"),
        ('    """Values times', '    x = """Values times', "scaled has no docstring"),
        ("width, height : float", "width : float", "Box has the fields"),
        ("width, height : float", "width, height, depth : float", "Box has the fields"),
        ('    """What it is painted in."""\n', "", "Box has the fields"),
        ("    ValueError\n        A side", "    TypeError\n        A side", "Box raises ValueError"),
        ('        """Square metres."""', "        pass", "Box.area has no docstring"),
        ("        side : float\n", "        edge : float\n", "Box.cube takes"),
        ("    start : int\n", "    first : int\n", "Counter takes"),
        ('    """Counts.', '    x = """Counts.', "Counter has no docstring"),
    ],
)
def test_what_is_left_out_is_found(old, new, told):
    assert FULL.count(old) == 1
    faults = faults_of_source(FULL.replace(old, new))
    assert len(faults) == 1
    assert faults[0].startswith(told)
