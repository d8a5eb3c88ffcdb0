"""Files of cases: what is checked, what is refused and how it is named, what is drawn, written and read."""

import hashlib
import resource
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.evaluation.cases.attacks import ATTACKS
from libs.evaluation.cases.case import CaseError, EvalCase, document_of
from libs.evaluation.cases.dataset import CaseFile, CaseWriter, DatasetError, check, select, write_cases
from libs.evaluation.cases.document import FEATURES
from libs.evaluation.cases.injection import hostile
from libs.evaluation.cases.masked import masked
from libs.evaluation.cases.reading import LONGEST_LINE
from tests.unit.evaluation_case_values import any_cases, good_case

GOOD = orjson.dumps(document_of(good_case()))


def lines(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(part + b"\n" for part in parts))
    return path


def numbered(count: int) -> list[EvalCase]:
    return [good_case(number) for number in range(count)]


def with_twins(count: int) -> list[EvalCase]:
    """Cases, each third with a twin of two kinds right behind it."""
    found: list[EvalCase] = []
    for case in numbered(count):
        found.append(case)
        if len(found) % 3 == 0:
            found.append(replace(case, id=f"{case.id}~masked", twin="masked", twin_of=case.id))
            found.append(replace(case, id=f"{case.id}~tags", twin="hostile", twin_of=case.id, attack="tags"))
    return found


def refused(path: Path) -> str:
    """What `check` says."""
    with pytest.raises(DatasetError) as caught:
        check(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


def test_a_good_file_is_counted_and_hashed(tmp_path: Path) -> None:
    known = replace(good_case(2), moments=dict.fromkeys(FEATURES, good_case(2).as_of))
    twin = replace(good_case(), id="AAPL-0~masked", twin="masked", twin_of="AAPL-0")
    more = (orjson.dumps(document_of(case)) for case in (twin, known))
    path = lines(tmp_path / "cases.jsonl", GOOD, b"", *more)
    info = check(path)
    assert (info.cases, info.twins, info.without_moments) == (3, 1, 2)
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "line 3: is not JSON"),
        (GOOD[:-1], "line 3: is not JSON: Expecting ',' delimiter at column"),
        (GOOD + GOOD, "line 3: is not JSON: Extra data at column"),
        (b"[]", "line 3: must be a JSON object, not []"),
        (b"null", "line 3: must be a JSON object, not None"),
        (b"\xff\xfe{}", "line 3: is not UTF-8 (byte 0)"),
        ("{}".encode("utf-16-be"), "line 3: is not JSON"),
        (b"[" * 100_000, "line 3: is nested too deeply"),
        (b'{"id": ' + b"9" * 5000 + b"}", "line 3: is not usable JSON"),
        (b'{"id": NaN}', "line 3: holds NaN, which is no JSON"),
        (b'{"id": "x", "id": "y"}', "line 3: id: is given twice"),
        (GOOD.replace(b'"side"', b'"side":"buy","side"'), "line 3: side: is given twice"),
        (GOOD, "line 3: id: 'AAPL-0' comes twice"),
        (
            GOOD.replace(b'"AAPL-0"', b'"AAPL-9"').replace(b'"mean"', b'"meen"'),
            "line 3: inputs.signal.mean: is missing",
        ),
        (b" " * (LONGEST_LINE + 1), "line 3: is longer than"),
    ],
)
def test_a_wrong_line_is_named_by_its_number_and_field(tmp_path: Path, line: bytes, said: str) -> None:
    path = lines(tmp_path / "cases.jsonl", GOOD, b"", line, b"{")
    assert refused(path).startswith(f", {said}")


def test_a_feature_from_the_future_is_refused(tmp_path: Path) -> None:
    found = document_of(good_case(1))
    found["inputs"]["facts"]["borrow"]["as_of"] = "2012-12-01T00:00:00+00:00"
    path = lines(tmp_path / "cases.jsonl", GOOD, orjson.dumps(found))
    assert "line 2: inputs.facts.borrow.as_of: 2012-12-01T00:00:00+00:00 is after as_of 2012-11-21" in refused(path)


def test_a_twin_comes_after_its_case(tmp_path: Path) -> None:
    twin = replace(good_case(), id="x", twin="masked", twin_of="AAPL-0")
    path = lines(tmp_path / "cases.jsonl", orjson.dumps(document_of(twin)), GOOD)
    assert ", line 1: twin_of: no case before this one has the id 'AAPL-0'" in refused(path)


OTHER: dict[str, dict[str, Any]] = {
    "feed": {"feed": "replay:eval"},
    "target": {"target": False},
    "inputs.ticker": {"inputs": replace(good_case().inputs, ticker="ZZZ")},
    "inputs.signal": {"inputs": replace(good_case().inputs, signal=replace(good_case().inputs.signal, mean=7.0))},
    "inputs.facts": {"inputs": replace(good_case().inputs, facts={})},
    "inputs.coverage_pct": {"inputs": replace(good_case().inputs, coverage_pct=None)},
    "inputs.as_of": {"as_of": good_case(1).as_of, "inputs": replace(good_case().inputs, as_of=good_case(1).as_of)},
}


@pytest.mark.parametrize("field", OTHER)
def test_a_hostile_twin_is_its_case_but_for_the_headlines(field: str, tmp_path: Path) -> None:
    twin = hostile(good_case(), ATTACKS["tags"])
    path = lines(tmp_path / "cases.jsonl", GOOD, orjson.dumps(document_of(twin)))
    assert check(path).twins == 1
    other = replace(good_case(realised=None), **OTHER[field], id="x", twin="hostile", twin_of="AAPL-0", attack="tags")
    said = refused(lines(path, GOOD, orjson.dumps(document_of(other))))
    assert said == f", line 2: {field}: differs from that of 'AAPL-0', whose hostile twin this is said to be"
    with pytest.raises(CaseError, match=rf"^{field}: differs"):
        write_cases(tmp_path / "written.jsonl", [good_case(), other])


def test_a_masked_twin_has_the_target_of_its_case(tmp_path: Path) -> None:
    twin = masked(good_case(), seed=1)
    path = lines(tmp_path / "cases.jsonl", GOOD, orjson.dumps(document_of(twin)))
    assert check(path).twins == 1
    for target in (False, None):
        other = orjson.dumps(document_of(replace(twin, target=target)))
        assert ", line 2: target: differs from that of 'AAPL-0', whose masked" in refused(lines(path, GOOD, other))


def test_files_that_are_no_data_set(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere.jsonl") == ": No such file or directory"
    assert refused(tmp_path / "nowhere.parquet") == ": No such file or directory"
    (tmp_path / "folder.jsonl").mkdir()
    assert refused(tmp_path / "folder.jsonl") == ": Is a directory"
    assert "there is no case in it" in refused(lines(tmp_path / "empty.jsonl"))
    assert "there is no case in it" in refused(lines(tmp_path / "blank.jsonl", b"", b"  "))
    assert "a data set ends in .jsonl or .parquet" in refused(lines(tmp_path / "cases.csv", GOOD))


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n" + orjson.dumps(document_of(good_case(1))) + b"\r\n\r\n")
    assert check(path).cases == 2
    assert [case.id for case in select(check(path), limit=None, seed=1)] == ["AAPL-0", "AAPL-1"]
    with CaseFile(path) as file:
        assert list(file) == numbered(2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)  # each waits for the disk
@given(st.lists(any_cases(clean=True), min_size=1, max_size=4, unique_by=lambda case: case.id))
def test_what_is_written_is_read_again(tmp_path: Path, cases: list[EvalCase]) -> None:
    path = tmp_path / "cases.jsonl"
    count, sha256 = write_cases(path, cases)
    info = check(path)
    assert (info.cases, info.sha256) == (count, sha256)
    assert list(select(info, limit=None, seed=1)) == cases
    with CaseFile(path) as file:
        assert [file.case(number) for number in reversed(range(len(file)))] == cases[::-1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=8), st.integers(0, 3 * len(GOOD)), st.booleans())
def test_a_damaged_file_is_refused_or_read_and_nothing_else(
    tmp_path: Path, damage: bytes, where: int, cut: bool
) -> None:
    path = lines(tmp_path / "cases.jsonl", *(orjson.dumps(document_of(case)) for case in numbered(3)))
    whole = path.read_bytes()
    path.write_bytes(whole[:where] + damage + (b"" if cut else whole[where + len(damage) :]))
    try:
        info = check(path)
    except DatasetError:
        with CaseFile(path) as file:
            try:
                assert len(list(file)) <= 4
            except DatasetError:
                return
    else:
        with CaseFile(path) as file:
            assert len(list(file)) == info.cases


def test_a_sample_is_drawn_by_its_seed_in_the_files_order(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    write_cases(path, numbered(50))
    info = check(path)
    drawn = [case.id for case in select(info, limit=20, seed=7)]
    assert len(drawn) == 20
    assert drawn == sorted(drawn, key=lambda name: int(name.partition("-")[2]))
    assert drawn == [case.id for case in select(info, limit=20, seed=7)]
    assert drawn != [case.id for case in select(info, limit=20, seed=8)]
    assert list(select(info, limit=50, seed=7)) == list(select(info, limit=None, seed=1)) == numbered(50)
    assert list(select(info, limit=0, seed=7)) == []


def test_twins_are_drawn_with_their_cases(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    write_cases(path, with_twins(30))
    info = check(path)
    drawn = list(select(info, limit=10, seed=1))
    clean = [case.id for case in drawn if not case.twin]
    assert len(clean) == 10
    twins = [case for case in with_twins(30) if case.twin and case.twin_of in clean]
    assert [case for case in drawn if case.twin] == twins
    assert twins


def test_a_file_that_changed_since_it_was_checked_is_not_sampled(tmp_path: Path) -> None:
    path = lines(tmp_path / "cases.jsonl", GOOD)
    info = check(path)
    lines(path, GOOD, GOOD)
    with pytest.raises(DatasetError, match="was changed since it was checked"):
        select(info, limit=1, seed=1)


def test_a_sample_of_a_long_file_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    write_cases(path, (good_case(number) for number in range(2500)))
    tracemalloc.start()
    info = check(path)
    assert sum(1 for _ in select(info, limit=2000, seed=1)) == 2000
    with CaseFile(path) as file:
        assert sum(1 for _ in file) == len(file) == 2500
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2


def test_cases_that_cannot_be_read_back_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    with pytest.raises(CaseError, match="id: 'AAPL-1' comes twice"):
        write_cases(path, [good_case(), good_case(1), good_case(1)])
    wrong = replace(good_case(), inputs=replace(good_case().inputs, coverage_pct=float("nan")))
    with pytest.raises(CaseError, match=r"inputs.coverage_pct: .* \(case 'AAPL-0'\)"):
        write_cases(path, [wrong])

    def broken() -> Iterator[EvalCase]:
        yield good_case()
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source broke"):
        write_cases(path, broken())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        for count in (100, 27):  # in the middle, and with the last of it
            with pytest.raises(OSError, match=r"/cases\.jsonl cannot be written: File too large; make room"):
                write_cases(tmp_path / "cases.jsonl", numbered(count))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_there_only_once_it_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    with CaseWriter(path) as writer:
        writer.add(good_case())
        assert not path.exists()
        writer.finish()
    assert (writer.count, writer.sha256) == (1, hashlib.sha256(path.read_bytes()).hexdigest())
    write_cases(path, numbered(2))
    assert check(path).cases == 2


def test_a_case_file_names_the_line_it_cannot_read(tmp_path: Path) -> None:
    path = lines(tmp_path / "cases.jsonl", GOOD, b"", b'{"id": 1}', GOOD[:-9])
    with CaseFile(path) as file:
        assert file.case(0) == good_case()
        with pytest.raises(DatasetError, match=r"cases.jsonl, line 3: id: "):
            file.case(1)
        with pytest.raises(DatasetError, match=r"cases.jsonl, line 4: is not JSON"):
            file.case(2)
        for number in (-1, 3):
            with pytest.raises(IndexError):
                file.case(number)
    with pytest.raises(DatasetError, match=r"nowhere\.jsonl: No such file"):
        CaseFile(tmp_path / "nowhere.jsonl")
