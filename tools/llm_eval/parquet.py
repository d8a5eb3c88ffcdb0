"""The rows of a run as Parquet, for notebooks: a row an item, the same names and values as in `rows.jsonl`."""

import os
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Final

from libs.evaluation.running.row import LISTS, NAMES, Row

AT_ONCE = 10_000
BOOLEANS: Final = ("cached", "allow", "rules_allow", "target", "won")
NUMBERS: Final = ("made", "queue_ms", "first_queue_ms", "first_token_ms", "total_ms", "late_ms")
COUNTS: Final = ("item", "try", "repeat", "tokens_in", "tokens_out")


def write_parquet(rows: Iterable[Row], path: Path) -> None:
    """Write them, a part at a time; the file appears whole or not at all. Raises `OSError`."""
    pa: Any = import_module("pyarrow")  # here, since it takes half a second that other commands need not spend
    parquet: Any = import_module("pyarrow.parquet")
    schema: Any = pa.schema([(name, _type(pa, name)) for name in NAMES])
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with parquet.ParquetWriter(part, schema, compression="zstd") as writer:
            for documents in _in_parts(rows):
                writer.write_table(pa.Table.from_pylist(documents, schema=schema))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _in_parts(rows: Iterable[Row]) -> Iterator[list[dict[str, Any]]]:
    left = iter(rows)
    while part := [row.document() for row in islice(left, AT_ONCE)]:
        yield part


def _type(pa: Any, name: str) -> Any:
    """The type of a column. Days and times stay texts, as everywhere in the results."""
    if name in LISTS:
        return pa.list_(pa.string())
    if name in BOOLEANS:
        return pa.bool_()
    if name in NUMBERS:
        return pa.float64()
    return pa.int64() if name in COUNTS else pa.string()
