"""Docstrings, read from the source: what the documentation site lists says all that is taken, given and raised.

All other public names have a docstring, and what its Parameters name is there; private ones need none.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import risfast

PACKAGE = Path(risfast.__file__).resolve().parent
REFERENCE = PACKAGE.parent / "docs" / "pages" / "reference"

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


def members(node):
    """Public methods of a class, with whether each takes self or cls."""
    for item in node.body:
        if isinstance(item, Function) and is_public(item) and "overload" not in decorators(item):
            yield item, "staticmethod" not in decorators(item)


def faults_in_short(node, takes):
    """What the docstring of a name that the site does not list leaves out, or says of parameters that are not there."""
    found = docstring(node)
    if found is None:
        return ["has no docstring"]
    unknown = [name for name in found.get("Parameters", []) if name not in takes]
    return [f"takes {takes}, and Parameters names {unknown}"] if unknown else []


def faults_of_source(source, listed=None):
    """Everything that the docstrings of a module leave out, one line each.

    ``listed`` are the names that are documented in full, with their methods; None is all of them.
    """
    faults = []
    for node in ast.parse(source).body:
        if not isinstance(node, Function | ast.ClassDef) or not is_public(node):
            continue
        whole = listed is None or node.name in listed
        if isinstance(node, Function):
            told = faults_of_function(node) if whole else faults_in_short(node, parameters(node, bound=False))
            faults += [f"{node.name} {fault}" for fault in told]
            continue
        made = next((m for m in node.body if isinstance(m, Function) and m.name == "__init__"), None)
        takes = [*(record_fields(node) or {}), *(parameters(made, bound=True) if made else [])]
        faults += [
            f"{node.name} {fault}" for fault in (faults_of_class(node) if whole else faults_in_short(node, takes))
        ]
        for method, bound in members(node):
            if whole:
                told = faults_of_function(method, bound=bound)
            else:
                told = faults_in_short(method, parameters(method, bound=bound))
            faults += [f"{node.name}.{method.name} {fault}" for fault in told]
    return faults


MODULES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


def listed_by(page):
    """Dotted names that a page of the reference lists, and whether their members are shown."""
    lines = page.splitlines()
    found = {}
    for n, line in enumerate(lines):
        if line.startswith("::: "):
            options = []
            for after in lines[n + 1 :]:
                if not after.startswith("    "):
                    break
                options.append(after.strip())
            found[line[4:].strip()] = "members: false" not in options
    return found


def file_of(module):
    """Name in MODULES of a dotted module, or None."""
    path = module.removeprefix("risfast").lstrip(".").replace(".", "/")
    return next((name for name in (f"{path}.py", f"{path}/__init__.py".lstrip("/")) if name in MODULES), None)


def home_of(dotted):
    """(file, name) where a dotted name is defined, through the imports of packages; name None of a module."""
    if file_of(dotted):
        return file_of(dotted), None
    module, _, name = dotted.rpartition(".")
    if not file_of(module):
        return None
    for node in ast.parse(MODULES[file_of(module)].read_text()).body:
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return file_of(module), name
        if isinstance(node, ast.Assign) and name in [t.id for t in node.targets if isinstance(t, ast.Name)]:
            return file_of(module), name  # an alias, or a constant
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return home_of(f"{node.module}.{alias.name}")
    return None


PAGES = {path.name: listed_by(path.read_text()) for path in sorted(REFERENCE.glob("*.md"))}
LISTED = {name: shown for page in PAGES.values() for name, shown in page.items()}
IN_FULL = {}  # of each file: names in it that the site lists, None for all
for _dotted, _shown in LISTED.items():
    _home = home_of(_dotted)
    if _home and _home[1] is None:
        if _shown:
            IN_FULL[_home[0]] = None
    elif _home and IN_FULL.get(_home[0], ()) is not None:
        IN_FULL.setdefault(_home[0], set()).add(_home[1])


def test_the_pages_list_what_a_user_calls():
    """So that nothing escapes the full check by a page that is read wrongly."""
    found = {(home_of(name) or ("", ""))[1] for name in LISTED}
    assert {"Localizer", "Setup", "Region", "SensorArray", "Sources", "detect_sources", "mvdr_spectrum"} <= found
    assert {"read", "PolishOptions", "UnrolledBackbone", "match", "SystemConfig"} <= found
    assert IN_FULL["errors.py"] is None
    assert len(found) > 60


@pytest.mark.parametrize("page", PAGES)
def test_every_name_that_the_site_lists_is_in_the_package(page):
    assert PAGES[page]
    assert not [name for name in PAGES[page] if home_of(name) is None]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_name_what_is_taken_given_and_raised_as_the_site_lists_it(name):
    faults = faults_of_source(MODULES[name].read_text(), IN_FULL.get(name, set()))
    assert not faults, "\n".join([f"{name}:", *faults])


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


def test_a_name_that_is_not_listed_needs_a_docstring_and_no_more():
    short = '''
def sum_of(a, b) -> float:
    """Of both."""
    raise ValueError(a)


class Pair:
    """Two numbers."""

    def __init__(self, a, b):
        pass

    def larger(self, than) -> float:
        """That one."""


def _private(a):
    pass
'''
    assert faults_of_source(short, set()) == []
    assert [fault.split()[0] for fault in faults_of_source(short, {"Pair"})] == ["Pair", "Pair.larger", "Pair.larger"]
    assert faults_of_source(short.replace('    """Of both."""\n', ""), set()) == ["sum_of has no docstring"]
    assert faults_of_source(short.replace('        """That one."""', "        pass"), set()) == [
        "Pair.larger has no docstring"
    ]
    wrong = short.replace("Of both.", "Of both.\n\n    Parameters\n    ----------\n    a, c : float\n    ")
    assert faults_of_source(wrong, set()) == ["sum_of takes ['a', 'b'], and Parameters names ['c']"]


def test_a_page_is_read_with_the_options_of_its_entries():
    page = (
        "# A\n\n::: risfast.a.B\n::: risfast.ops\n    options:\n      members: false\n\n::: risfast.c\n    options:\n"
    )
    assert listed_by(page) == {"risfast.a.B": True, "risfast.ops": False, "risfast.c": True}
