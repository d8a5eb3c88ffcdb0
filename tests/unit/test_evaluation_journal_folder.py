"""The folder of a run: whole or not there."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from libs.evaluation.running.folder import Folder, FolderError, write_atomic
from libs.evaluation.running.plan import PlanError
from tests.unit.evaluation_running_cases import plan_of

AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def test_it_is_named_by_time_and_name_and_never_shared(tmp_path: Path) -> None:
    names = [Folder.create(tmp_path / "results", "policy-1.1.0", at=AT).path.name for _ in range(3)]
    assert names == [
        "20260304T050607Z-policy-1.1.0",
        "20260304T050607Z-policy-1.1.0-2",
        "20260304T050607Z-policy-1.1.0-3",
    ]


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "with space", "x" * 61])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FolderError, match="name"):
        Folder.create(tmp_path, name, at=AT)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(FolderError, match=r"results.*--results"):
        Folder.create(tmp_path / "results", "x", at=AT)


def test_nothing_is_left_of_a_run_that_could_not_begin(tmp_path: Path) -> None:
    def begin() -> None:
        with Folder.making(tmp_path / "results", "x", at=AT) as folder:
            folder.cases.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        begin()
    assert list((tmp_path / "results").iterdir()) == []


def test_a_run_that_began_stays_and_is_found_again(tmp_path: Path) -> None:
    plan = plan_of(3)
    with Folder.making(tmp_path, "x", at=AT) as folder:
        folder.cases.write_text("")
        folder.write_plan(plan)
    assert Folder.open(folder.path) == folder
    assert Folder.open(folder.path).read_plan() == plan
    assert {path.name for path in folder.path.iterdir()} == {"cases.jsonl", "plan.json"}


def test_what_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no folder of results"):
        Folder.open(tmp_path / "away")
    folder = Folder.create(tmp_path, "x", at=AT)
    folder.cases.write_text("")
    with pytest.raises(FolderError, match=r"plan\.json is missing"):
        Folder.open(folder.path)
    with pytest.raises(PlanError, match=r"plan\.json is missing"):
        folder.read_plan()


def test_a_file_is_replaced_whole_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    for text in ("first", "second, longer", "ä"):
        write_atomic(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"away/report\.html cannot be written"):
        write_atomic(tmp_path / "away" / "report.html", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FolderError, match="folder cannot be written"):
        write_atomic(tmp_path / "folder", "x")
    assert {path.name for path in tmp_path.iterdir()} == {"folder"}
