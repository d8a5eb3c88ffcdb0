"""Parquet files of cases: the same checks as for JSONL, and what only Parquet can do wrong."""

import hashlib
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from pyarrow import parquet

from libs.evaluation.cases.case import EvalCase, document_of
from libs.evaluation.cases.dataset import DatasetError, check, select
from tests.unit.evaluation_case_values import good_case


def numbered(count: int) -> list[EvalCase]:
    return [good_case(number) for number in range(count)]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    arrow: Any = pa
    writer: Any = parquet
    writer.write_table(arrow.Table.from_pylist(rows), path)
    return path


def refused(path: Path) -> str:
    """What `check` says."""
    with pytest.raises(DatasetError) as caught:
        check(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


def test_parquet_with_objects_as_structs_and_as_text(tmp_path: Path) -> None:
    other = replace(good_case(1), realised=None, target=None)
    other = replace(other, inputs=replace(other.inputs, factors={"reversal_5": 1.0}, facts={}))
    documents = [document_of(good_case()), document_of(other)]
    documents[0]["moments"] = {"factors": documents[0]["as_of"]}
    structs = write_parquet(tmp_path / "structs.parquet", documents)
    told = ("inputs", "moments", "target", "realised")
    texts = write_parquet(
        tmp_path / "texts.parquet",
        [{n: json.dumps(v) if n in told else v for n, v in one.items()} for one in documents],
    )
    first = replace(good_case(), moments={"factors": good_case().as_of})
    for path in (structs, texts):
        info = check(path)
        assert (info.cases, info.without_moments) == (2, 2)
        assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert list(select(info, limit=None, seed=1)) == [first, other]


def test_parquet_with_timestamps_and_maps(tmp_path: Path) -> None:
    arrow: Any = pa
    found = document_of(replace(good_case(), inputs=replace(good_case().inputs, facts={})))
    del found["realised"], found["inputs"]["facts"]
    found["as_of"] = datetime.fromisoformat(found["as_of"])
    found["inputs"]["as_of"] = found["as_of"]
    struct = arrow.Table.from_pylist([found]).schema.field("inputs").type
    fields = [field for field in struct if field.name != "factors"]
    kind = arrow.struct([*fields, ("factors", arrow.map_(arrow.string(), arrow.float64()))])
    fact = arrow.struct(
        [("value", arrow.string()), ("as_of", arrow.timestamp("ns", "UTC")), ("source", arrow.string())]
    )
    kind = arrow.struct([*kind, ("facts", arrow.map_(arrow.string(), fact))])
    found["inputs"]["factors"] = list(found["inputs"]["factors"].items())
    found["inputs"]["facts"] = [("borrow", {"value": "none", "as_of": found["as_of"], "source": "desk"})]
    columns = {
        "id": arrow.array(["a"]),
        "feed": arrow.array(["eval"]),
        "as_of": arrow.array([found["as_of"]], arrow.timestamp("us", "UTC")),
        "inputs": arrow.array([found["inputs"]], kind),
    }
    parquet_file: Any = parquet
    parquet_file.write_table(arrow.table(columns), tmp_path / "cases.parquet")
    (case,) = select(check(tmp_path / "cases.parquet"), limit=None, seed=1)
    assert case.inputs.factors == good_case().inputs.factors
    assert case.inputs.facts["borrow"].as_of == case.as_of == good_case().as_of


def test_a_wrong_row_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    rows = [document_of(case) for case in numbered(600)]
    rows[577]["as_of"] = "2012-11-20T21:00:00"
    said = refused(write_parquet(tmp_path / "cases.parquet", rows))
    assert said.startswith(", row 578: as_of: '2012-11-20T21:00:00' has no time zone")
    del rows[577]
    rows[10]["id"] = rows[3]["id"]
    assert ", row 11: id: 'AAPL-3' comes twice" in refused(write_parquet(tmp_path / "cases.parquet", rows))
    bad = [{"id": "a", "as_of": "2012-11-20T21:00:00Z", "feed": "eval", "inputs": "{"}]
    assert ", row 1: inputs: is not JSON" in refused(write_parquet(tmp_path / "cases.parquet", bad))
    bad[0]["inputs"] = '{"ticker": "A", "ticker": "B"}'
    assert ", row 1: inputs: ticker: is given twice" in refused(write_parquet(tmp_path / "cases.parquet", bad))


@pytest.mark.parametrize("cut", [3, 10, 200, 2000, -5, -40])
def test_a_torn_parquet_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = write_parquet(tmp_path / "cases.parquet", [document_of(case) for case in numbered(20)])
    path.write_bytes(path.read_bytes()[:cut])
    assert "is no readable Parquet file" in refused(path)


def test_a_file_whose_name_promises_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cases.parquet"
    path.write_bytes(orjson.dumps(document_of(good_case())))
    assert "is no readable Parquet file" in refused(path)
    path.write_bytes(b"")
    assert "is no readable Parquet file" in refused(path)
    named_wrong = write_parquet(path, [{"id": "x"}]).rename(tmp_path / "cases.jsonl")
    assert "line 1: is not" in refused(named_wrong)
