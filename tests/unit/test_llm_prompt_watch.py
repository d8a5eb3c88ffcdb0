"""When prompts that changed are read, and when they are left alone."""

import os
from pathlib import Path

import pytest

from libs.llm.errors import ExperimentError, PromptFileError
from libs.llm.lock import HEADER
from libs.llm.prompt_watch import PromptWatch
from libs.llm.registry import Registry
from tests.unit.llm_cases import PROMPTS, write_prompts

BUMPED = PROMPTS.replace('verdict:\n  version: "1.0.0"', 'verdict:\n  version: "1.1.0"')


def all_good(_: Registry) -> None:
    """Accept whatever is good in itself."""


def watched(folder: Path) -> tuple[PromptWatch, Path, Path]:
    path = write_prompts(folder)
    watch = PromptWatch(path, path.with_suffix(".lock"), accept=all_good)
    assert watch.load().active("verdict").version == "1.0.0"
    return watch, path, path.with_suffix(".lock")


def test_files_that_did_not_change_are_not_read(tmp_path: Path) -> None:
    watch, _, _ = watched(tmp_path)
    assert watch.look() is None
    assert watch.settled
    assert watch.trouble is None


def test_a_changed_file_is_read_once_it_stands_still(tmp_path: Path) -> None:
    watch, path, _ = watched(tmp_path)
    path.write_text(PROMPTS[: PROMPTS.index("health:")])
    assert watch.look() is None
    assert not watch.settled
    path.write_text(BUMPED)
    assert watch.look() is None
    registry = watch.look()
    assert registry is not None
    assert registry.active("verdict").version == "1.1.0"
    assert registry.keys() == ("verdict", "note", "health")
    assert watch.settled
    assert watch.look() is None


def test_another_file_put_in_its_place_is_seen_even_with_the_same_size_and_time(tmp_path: Path) -> None:
    watch, path, _ = watched(tmp_path)
    before, new = path.stat(), tmp_path / "new.yaml"
    new.write_text(BUMPED)
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert new.stat().st_size == before.st_size
    new.rename(path)
    assert watch.look() is None
    registry = watch.look()
    assert registry is not None
    assert registry.active("verdict").version == "1.1.0"


def test_a_release_in_the_lock_is_seen(tmp_path: Path) -> None:
    watch, _, lock = watched(tmp_path)
    digest = Registry.load_quietly(tmp_path / "prompts.yaml").active("verdict").sha256
    lock.write_text(f"{HEADER}\nverdict 1.0.0 {digest} 2026-01-01T00:00:00+00:00\n")
    assert watch.look() is None
    registry = watch.look()
    assert registry is not None
    assert registry.active("verdict").released_at is not None


@pytest.mark.parametrize("broken", ["verdict: [", "verdict: {}", ""], ids=["yaml", "fields", "empty"])
def test_a_broken_file_is_told_and_changes_nothing(tmp_path: Path, broken: str) -> None:
    watch, path, _ = watched(tmp_path)
    path.write_text(broken)
    assert [watch.look(), watch.look(), watch.look()] == [None, None, None]
    assert str(path) in (watch.trouble or "")
    assert "the prompts read before still hold" in (watch.trouble or "")
    assert watch.settled
    path.write_text(PROMPTS)
    assert watch.look() is None
    assert watch.look() is not None
    assert watch.trouble is None


@pytest.mark.parametrize("which", [0, 1], ids=["prompts", "lock"])
def test_a_file_that_vanished_is_told_and_may_come_back_as_it_was(tmp_path: Path, which: int) -> None:
    watch, *paths = watched(tmp_path)
    aside = tmp_path / "aside"
    paths[which].rename(aside)
    assert [watch.look(), watch.look()] == [None, None]
    assert str(paths[which]) in (watch.trouble or "")
    aside.rename(paths[which])
    assert watch.look() is None
    assert watch.look() is not None
    assert watch.trouble is None


def test_prompts_that_cannot_be_used_here_are_refused_and_read_again_with_every_look(tmp_path: Path) -> None:
    path = write_prompts(tmp_path)
    refusing: list[str] = []

    def accept(_: Registry) -> None:
        if refusing:
            raise ExperimentError(refusing[0])

    watch = PromptWatch(path, path.with_suffix(".lock"), accept=accept)
    watch.load()
    refusing.append("not with these buckets")
    path.write_text(BUMPED)
    assert [watch.look(), watch.look()] == [None, None]
    assert (watch.trouble or "").startswith("not with these buckets; ")
    refusing.clear()
    assert watch.look() is not None
    assert watch.trouble is None


def test_a_file_that_changes_while_it_is_read_is_not_taken(tmp_path: Path) -> None:
    path = write_prompts(tmp_path)
    meanwhile: list[str] = []

    def accept(_: Registry) -> None:
        if meanwhile:
            path.write_text(meanwhile.pop())

    watch = PromptWatch(path, path.with_suffix(".lock"), accept=accept)
    watch.load()
    path.write_text(PROMPTS.replace("Answer OK.", "Answer with OK."))
    meanwhile.append(BUMPED)
    assert [watch.look(), watch.look(), watch.look()] == [None, None, None]
    assert not meanwhile
    registry = watch.look()
    assert registry is not None
    assert registry.active("verdict").version == "1.1.0"


def test_what_is_wrong_at_the_start_is_raised(tmp_path: Path) -> None:
    path = write_prompts(tmp_path, "verdict: [")
    with pytest.raises(PromptFileError, match="prompts"):
        PromptWatch(path, path.with_suffix(".lock"), accept=all_good).load()
