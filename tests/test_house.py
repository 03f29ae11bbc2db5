"""The plan of the package: rooms, one way through them, what it needs, and its size."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "beatssl"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = [  # from left to right; a room imports only rooms to its left
    ("settings", "cache", "fingerprint", "compute", "progress"),
    ("data",),
    ("ecg_text", "weights"),
    ("ecg",),
    ("paper", "delineator"),
    ("methods",),
    ("embedder",),
    ("train",),
    ("tasks",),
    ("profile",),
    ("results",),
    ("evaluate",),
    ("restamp", "estimate"),
    ("report",),
    ("pages",),
    ("own",),
    ("commands",),
    ("__main__",),
]
PLACE = {room: place for place, rooms in enumerate(ROOMS) for room in rooms}
BOOK = ("paper", "report", "pages", "commands")  # need what the extra `book` installs
MOST_LINES = 8_471  # of code, 910 of them for one's own ECGs; what is new must be weighed


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in FILES}


def imports(path: Path) -> list[tuple[str, ast.AST]]:
    """Dotted names that a file imports, at any depth, each with its statement."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(n if n in MODULES else node.module, node) for n in names]
    return found


def arrows() -> set[tuple[str, str]]:
    """(module, module of the package that it imports)."""
    return {
        (module_of(path), name)
        for path in FILES
        for name, _ in imports(path)
        if name.split(".")[0] == "beatssl"
    }


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "settings"  # the package itself is empty


def test_a_room_imports_only_rooms_to_its_left():
    backwards = [
        f"{module} imports {other}"
        for module, other in sorted(arrows())
        if room(module) != room(other) and PLACE[room(module)] <= PLACE[room(other)]
        and PLACE[room(module)] > 0
    ]  # fmt: skip
    assert backwards == []


def test_no_import_circle():
    needs: dict[str, set[str]] = {}
    for module, other in arrows():
        needs.setdefault(module, set()).add(other)
    left, floors = set(MODULES), 0
    while left:
        free = {module for module in left if not (needs.get(module, set()) & left - {module})}
        assert free, f"in a circle: {', '.join(sorted(left))}"
        left -= free
        floors += 1


def test_no_import_hides_in_a_function_or_behind_a_condition():
    for path in FILES:
        top = ast.parse(path.read_text()).body
        lines = {node.lineno for node in top}
        late = [node.lineno for _, node in imports(path) if node.lineno not in lines]
        assert late == [], f"{path.name}: late imports in lines {late}"


def test_tasks_never_import_results():
    assert not [a for a in arrows() if room(a[0]) == "tasks" and room(a[1]) == "results"]


def named(requirements: list[str]) -> dict[str, str]:
    """Package -> version range."""
    parts = [re.match(r"[\w.-]+", text) for text in requirements]
    return {
        part[0].lower(): text[part.end() :].strip()
        for part, text in zip(parts, requirements, strict=True)
    }


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_requirements_txt_sets_up_the_core_and_all_extras(project):
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").open())
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(line for extra in extras.values() for line in extra)]
    assert named([line for line in lines if line]) == named(asked)


def test_all_but_the_book_runs_on_the_core(project):
    """What the rooms left of report/ import is in the core, or the standard library's."""
    known = {"sklearn": "scikit-learn", "yaml": "pyyaml"}
    with_them = {"threadpoolctl": "scikit-learn"}  # installed with it
    core = named(project["dependencies"])
    for path in FILES:
        if room(module_of(path)) in BOOK:
            continue
        for name, _ in imports(path):
            top = name.split(".")[0]
            package = known.get(top, with_them.get(top, top))
            standard = top in __import__("sys").stdlib_module_names or top == "beatssl"
            assert standard or package in core, f"{path.name} imports {top}"


def code_lines(source: str) -> int:
    """Lines with code: no docstrings, comments, blank lines."""
    words: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", 0), str):
            words |= set(range(first.lineno, first.end_lineno + 1))
    empty = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
             tokenize.ENDMARKER)  # fmt: skip
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in empty:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - words)


def test_the_package_stays_small():
    assert code_lines('"""Words."""\n\n# more\nx = (\n    1\n)\n') == 3
    assert sum(code_lines(path.read_text()) for path in FILES) <= MOST_LINES
