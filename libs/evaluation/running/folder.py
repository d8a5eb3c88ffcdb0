"""The folder of one run. It is whole by itself: going on with it, its report and comparisons need nothing else."""

import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Final

import orjson

from libs.evaluation.running.plan import Plan, read_plan

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


class FolderError(Exception):
    """A folder of results cannot be made or used; the message names it and the way out."""


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of one run."""

    path: Path

    @classmethod
    def create(cls, results_dir: Path, name: str, *, at: datetime) -> "Folder":
        """Make an empty folder `<YYYYMMDDTHHMMSSZ>-<name>`, with a number behind it where that one exists already.

        Raises `FolderError`. Use `making` to have it removed when the run cannot begin.
        """
        if NAME.fullmatch(name) is None:
            raise FolderError(f"the name {name!r} must be letters, digits, dots, dashes and underscores, at most 60")
        stem = f"{at.astimezone(UTC):%Y%m%dT%H%M%SZ}-{name}"
        for number in count(1):
            path = results_dir / (stem if number == 1 else f"{stem}-{number}")
            try:
                results_dir.mkdir(parents=True, exist_ok=True)
                path.mkdir()
            except FileExistsError:
                if results_dir.is_dir():
                    continue
                raise FolderError(f"{results_dir} is no folder; name another one with --results") from None
            except OSError as error:
                raise FolderError(
                    f"{path} cannot be made: {error.strerror}; name another place with --results"
                ) from error
            return cls(path)
        raise AssertionError("unreachable")

    @classmethod
    @contextmanager
    def making(cls, results_dir: Path, name: str, *, at: datetime) -> "Generator[Folder]":
        """A new folder that is removed again when the block raises: nothing is left of a run that could not begin.

        Write the plan last: a folder without one, which a killed process may leave, is refused by `open`.
        """
        folder = cls.create(results_dir, name, at=at)
        try:
            yield folder
        except BaseException:
            folder.remove()
            raise

    @classmethod
    def open(cls, path: Path) -> "Folder":
        """The folder of a run that was begun. Raises `FolderError`."""
        if not path.is_dir():
            raise FolderError(f"{path} is no folder of results")
        folder = cls(path)
        for file in (folder.plan, folder.cases):
            if not file.is_file():
                raise FolderError(f"{file} is missing: {path} holds no run, or one that never began")
        return folder

    def remove(self) -> None:
        """Delete the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def plan(self) -> Path:
        """What is asked."""
        return self.path / "plan.json"

    @property
    def cases(self) -> Path:
        """The cases of this run, one a line."""
        return self.path / "cases.jsonl"

    @property
    def rows(self) -> Path:
        """What came of each item, one a line."""
        return self.path / "rows.jsonl"

    @property
    def summary(self) -> Path:
        """The figures."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def junit(self) -> Path:
        """The thresholds as test cases."""
        return self.path / "junit.xml"

    @property
    def parquet(self) -> Path:
        """The rows as Parquet, where asked for."""
        return self.path / "rows.parquet"

    def write_plan(self, plan: Plan) -> None:
        """Begin the run: from here on it can be gone on with."""
        write_atomic(self.plan, orjson.dumps(plan.document(), option=orjson.OPT_INDENT_2).decode() + "\n")

    def read_plan(self) -> Plan:
        """The plan. Raises `PlanError` naming the file."""
        return read_plan(self.plan)


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, also after a crash. Raises `FolderError` naming it."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with new.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise FolderError(f"{path} cannot be written: {error.strerror or error}") from error


def sync_folder(path: Path) -> None:
    """Put the names in a folder on disk. Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
