"""SQL is made of constants of this code base; whatever comes from outside is a bound parameter.

Every statement in the tree is looked at as Python reads it: `text(…)` of SQLAlchemy and the first argument of whatever
executes. Its words must be literals, or put together from names in capitals, which are constants by the house's rule.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CAPITALS = re.compile(r"_?[A-Z][A-Z0-9_]*")
EXECUTES = frozenset(
    {"execute", "executemany", "executescript", "exec_driver_sql", "scalar", "scalars", "fetch", "fetchrow", "fetchval"}
)
PUTS_TOGETHER = frozenset({"join", "format", "replace", "strip"})

PARTITION = "names of partitions come from the catalog of the database itself"
TABLE = "names of tables stand in the same module"
ALLOWED = {
    ("libs/exposures/counts.py", "hit"): "called while the module is read, with its own constants",
    ("libs/exposures/counts.py", "counted"): "the same",
    ("libs/llm/call_pages.py", "given_or_all"): "conditions looked up in CALL_CONDITIONS; their values are bound",
    ("libs/llm/call_store.py", "table"): TABLE,
    ("libs/llm/call_store.py", "names"): "the fields of two NamedTuples",
    ("services/api/strategist/desk/repository.py", "'; '.join([*statements, 'commit'])"): "see the test of `literal`",
    ("services/jobs/retention.py", "partition"): PARTITION,
    ("services/paper/store.py", "table"): TABLE,
    ("tools/backup/content.py", "table"): TABLE,
}
"""Expressions that are no constants and yet safe, by file and the expression's own text, with the reason."""
MADE_OF_CONSTANTS = frozenset({"rows_of"})
"""Functions that make a part of a statement from their arguments alone."""


def is_constant(node: ast.expr) -> bool:
    """Whether an expression is fixed when the module is read."""
    match node:
        case ast.Constant():
            return True
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return CAPITALS.fullmatch(name) is not None
        case ast.JoinedStr(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
            return all(map(is_constant, parts))
        case ast.FormattedValue(value=value):
            return is_constant(value)
        case ast.BinOp(left=left, right=right):
            return is_constant(left) and is_constant(right)
        case ast.IfExp(body=body, orelse=other):
            return is_constant(body) and is_constant(other)
        case ast.Call(func=ast.Attribute(value=text, attr=method), args=arguments, keywords=[]):
            return method in PUTS_TOGETHER and is_constant(text) and all(map(is_constant, arguments))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return name in MADE_OF_CONSTANTS and all(map(is_constant, arguments))
        case _:
            return False


def text_names(tree: ast.Module) -> set[str]:
    """What a module calls SQLAlchemy's `text`."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlalchemy")
        for alias in node.names
        if alias.name in {"text", "literal_column"}
    }


def looks_made(node: ast.expr) -> bool:
    """Whether an argument of something that executes is words put together on the spot."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) and node.func.attr in PUTS_TOGETHER
    return isinstance(node, ast.JoinedStr | ast.BinOp)


def statements(tree: ast.Module) -> Iterator[ast.expr]:
    """The words of every statement in a module."""
    names = text_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        first = node.args[0]
        match node.func:
            case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="sqlalchemy" | "sa"), attr=name):
                if name in names or (isinstance(node.func, ast.Attribute) and name == "text"):
                    yield first
            case ast.Attribute(attr=name):
                if name in EXECUTES and looks_made(first):
                    yield first
            case _:
                pass


def not_constant(node: ast.expr) -> Iterator[str]:
    """The parts of an expression that make it no constant, as they are written."""
    if is_constant(node):
        return
    match node:
        case ast.JoinedStr(values=parts):
            for part in parts:
                yield from not_constant(part)
        case ast.FormattedValue(value=value):
            yield from not_constant(value)
        case ast.BinOp(left=left, right=right):
            yield from not_constant(left)
            yield from not_constant(right)
        case _:
            yield ast.unparse(node)


def found_in(source: str) -> list[str]:
    return [part for statement in statements(ast.parse(source)) for part in not_constant(statement)]


def sources() -> list[Path]:
    return [
        path
        for folder in ("libs", "services", "tools", "examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "__pycache__" not in path.parts
    ]


def test_every_statement_is_made_of_constants() -> None:
    seen: set[tuple[str, str]] = set()
    wrong: list[str] = []
    for path in sources():
        place = str(path.relative_to(ROOT))
        for part in found_in(path.read_text(encoding="utf-8")):
            seen.add((place, part))
            if (place, part) not in ALLOWED:
                wrong.append(f"{place}: {part}")
    assert not wrong, "SQL put together from what is no constant: bind it as a parameter\n" + "\n".join(wrong)
    assert seen >= ALLOWED.keys(), f"no longer there: {ALLOWED.keys() - seen}"


@pytest.mark.parametrize(
    "statement",
    [
        "text(f'select * from t where x = {ticker}')",
        "text('select ' + column)",
        "text('select * from t where x = %s' % ticker)",
        "text('select {}'.format(ticker))",
        "text(statement)",
        "connection.execute(f'select {name}')",
        "await connection.fetchval('select ' + name)",
        "connection.exec_driver_sql(f'drop table {name}')",
        "text(' and '.join(terms))",
    ],
)
def test_it_sees_what_it_looks_for(statement: str) -> None:
    assert found_in(f"from sqlalchemy import text\nasync def f():\n    {statement}")


@pytest.mark.parametrize("statement", ["text('select 1')", "text(f'select {COLUMNS} from t')", "cut.execute(READ)"])
def test_it_lets_constants_pass(statement: str) -> None:
    assert not found_in(f"from sqlalchemy import text\nasync def f():\n    {statement}")
