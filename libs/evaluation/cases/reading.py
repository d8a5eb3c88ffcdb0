"""Cases as they stand in files: JSONL line by line, Parquet row by row, each with its place; never held whole."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, cast

import orjson

from libs.evaluation.cases.case import CaseError, EvalCase, case_from
from libs.evaluation.cases.document import shown

JSONL: Final = ".jsonl"
PARQUET: Final = ".parquet"
LONGEST_LINE = 1 << 20
"""Bytes of a line that could still be a case."""
ROWS_AT_ONCE = 512
OBJECTS: Final = ("inputs", "moments", "target", "realised")
"""Parquet columns that hold an object: as a struct, or as its JSON in text."""
BY_NAME: Final = ("factors", "facts")
BOM: Final = b"\xef\xbb\xbf"


class DatasetError(Exception):
    """A file of cases cannot be used; the message names the file, the line or row, the field, and what is wrong."""


class LineError(Exception):
    """A line is no JSON object that could be a case."""


def checked_lines(path: Path, *, seen: Callable[[bytes], object]) -> Iterator[tuple[str, EvalCase]]:
    """Every case of a JSONL file with its place (`line 17`), each line read with all care; empty lines are skipped.

    `seen` is shown every byte of the file, in order. Raises `DatasetError`.
    """
    for number, line in lines_of(path, seen=seen):
        place = f"line {number}"
        try:
            yield place, case_from(careful_json(line))
        except (LineError, CaseError) as error:
            raise DatasetError(f"{path}, {place}: {error}") from error


def lines_of(path: Path, *, seen: Callable[[bytes], object]) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, with their numbers, counted from 1. Raises `DatasetError`."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                seen(line)
                if len(line) > LONGEST_LINE:
                    raise DatasetError(
                        f"{path}, line {number}: is longer than {LONGEST_LINE} bytes; one case is one line"
                    )
                line = line.removeprefix(BOM) if number == 1 else line
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from error


def careful_json(line: bytes) -> Mapping[str, Any]:
    """The object of a line. Refuses what other readers take in silence: a name given twice, NaN, Infinity.

    Raises `LineError`.
    """
    try:
        value: Any = json.loads(line.decode(), object_pairs_hook=unique, parse_constant=no_constant)
    except UnicodeDecodeError as error:
        raise LineError(f"is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise LineError(f"is not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise LineError("is nested too deeply") from error
    except ValueError as error:  # unlike the others: an integer of thousands of digits
        raise LineError(f"is not usable JSON: {error}") from error
    if not isinstance(value, dict):
        raise LineError(f"must be a JSON object, not {shown(value)}")
    return cast("dict[str, Any]", value)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these entries. Raises `LineError` for a name that comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise LineError(f"{next(name for name in names if names.count(name) > 1)}: is given twice")
    return found


def no_constant(word: str) -> NoReturn:
    """Refuse NaN and Infinity."""
    raise LineError(f"holds {word}, which is no JSON; write null where a number is not known")


def quick_case(line: bytes) -> EvalCase:
    """A case from a line of a file that was checked before. Raises `LineError` or `CaseError`."""
    try:
        value: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise LineError(f"is not JSON: {error}") from error
    return case_from(value)


def parquet_cases(path: Path) -> Iterator[tuple[str, EvalCase]]:
    """Every case of a Parquet file with its place (`row 17`, counted from 1). Raises `DatasetError`."""
    for number, row in enumerate(parquet_rows(path), start=1):
        try:
            yield f"row {number}", case_from(document_of_row(row))
        except (LineError, CaseError) as error:
            raise DatasetError(f"{path}, row {number}: {error}") from error


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file. Raises `DatasetError`."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DatasetError(f"{path}: Parquet needs pyarrow: install it, or hand over JSONL ({error})") from error
    library: Any = pa
    reader: Any = parquet
    wrong: tuple[type[Exception], ...] = (library.ArrowException, ValueError, OverflowError, ArithmeticError)
    try:
        with reader.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=ROWS_AT_ONCE):
                yield from batch.to_pylist()
    except OSError as error:  # what Arrow itself cannot read has no error number
        raise DatasetError(f"{path}: {error.strerror or f'is no readable Parquet file: {error}'}") from error
    except wrong as error:
        raise DatasetError(f"{path}: is no readable Parquet file: {error}") from error


def document_of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a Parquet row. A null column is one left out; objects come as structs, maps or JSON in text.

    A struct gives every row the names of all rows, so a factor, fact or moment that is null there is one left out.
    Raises `LineError`.
    """
    document = {name: value for name, value in row.items() if value is not None}
    for name in OBJECTS:
        value = document.get(name)
        if isinstance(value, str):
            document[name] = careful_column(name, value)
        elif value is not None:
            document[name] = as_object(value)
    moments, inputs = document.get("moments"), document.get("inputs")
    if isinstance(moments, dict):
        document["moments"] = present(cast("dict[Any, Any]", moments))
    if isinstance(inputs, dict):
        document["inputs"] = with_names(cast("dict[str, Any]", inputs))
    return document


def careful_column(name: str, text: str) -> Mapping[str, Any]:
    """The object whose JSON a column holds. Raises `LineError`."""
    try:
        return careful_json(text.encode(errors="surrogatepass"))
    except LineError as error:
        raise LineError(f"{name}: {error}") from error


def with_names(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs with factors and facts as objects by name."""
    return {name: present(as_object(value)) if name in BY_NAME else value for name, value in inputs.items()}


def as_object(value: Any) -> Any:
    """A Parquet map, which comes as pairs, as an object; anything else as it is."""
    if not isinstance(value, list):
        return value
    entries = cast("list[Any]", value)
    if not all(isinstance(entry, tuple) and len(cast("tuple[Any, ...]", entry)) == 2 for entry in entries):
        return entries
    return dict(cast("list[tuple[Any, Any]]", entries))


def present(value: Any) -> Any:
    """An object without the names that are null."""
    if not isinstance(value, dict):
        return value
    return {name: entry for name, entry in cast("dict[Any, Any]", value).items() if entry is not None}
