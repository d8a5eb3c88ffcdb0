"""When a file of upstreams that changed is read, and when it is left alone."""

import os
from pathlib import Path

import pytest

from libs.upstreams.file_watch import FileWatch
from libs.upstreams.settings import UpstreamSettings

LEXI = "upstreams:\n- {name: lexi, slots: 8}\n"
MORE = LEXI + "- {name: o, model: m, base_url: 'http://h/v1', slots: 1}\n"


def watched(tmp_path: Path) -> tuple[FileWatch, Path]:
    path = tmp_path / "upstreams.yaml"
    path.write_text(LEXI)
    watch = FileWatch(UpstreamSettings.model_validate({"upstreams_file": path}))
    assert list(watch.load()) == ["lexi"]
    return watch, path


def test_a_file_that_did_not_change_is_not_read(tmp_path: Path) -> None:
    watch, _ = watched(tmp_path)
    assert watch.look() is None
    assert watch.settled
    assert watch.trouble is None


def test_a_changed_file_is_read_once_it_stands_still(tmp_path: Path) -> None:
    watch, path = watched(tmp_path)
    path.write_text(LEXI + "- {name: half, model: m, base_url: 'http://h/v1', slots: 1}\n")
    assert watch.look() is None
    assert not watch.settled
    path.write_text(MORE)
    assert watch.look() is None
    entries = watch.look()
    assert entries is not None
    assert list(entries) == ["lexi", "o"]
    assert watch.settled
    assert watch.look() is None


def test_another_file_put_in_its_place_is_seen_even_with_the_same_size_and_time(tmp_path: Path) -> None:
    watch, path = watched(tmp_path)
    before = path.stat()
    new = tmp_path / "new.yaml"
    new.write_text(LEXI.replace("8", "9"))
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.rename(path)
    assert watch.look() is None
    entries = watch.look()
    assert entries is not None
    assert entries["lexi"].slots == 9


def test_a_file_that_misses_something_beside_it_is_taken_once_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, path = watched(tmp_path)
    secret = tmp_path / "secret"
    monkeypatch.setenv("O_KEY_FILE", str(secret))
    path.write_text(MORE.replace("slots: 1}", "slots: 1, api_key_env: O_KEY}"))
    assert [watch.look(), watch.look()] == [None, None]
    assert "O_KEY_FILE cannot be read" in (watch.trouble or "")
    secret.write_text("a key")
    entries = watch.look()
    assert entries is not None
    assert list(entries) == ["lexi", "o"]
    assert watch.trouble is None
    assert watch.look() is None, "it is taken"


def test_a_broken_file_is_told_and_changes_nothing(tmp_path: Path) -> None:
    watch, path = watched(tmp_path)
    path.write_text("upstreams: [")
    assert [watch.look(), watch.look(), watch.look()] == [None, None, None]
    assert str(path) in (watch.trouble or "")
    assert "line 1" in (watch.trouble or "")
    assert watch.settled
    path.write_text(LEXI)
    watch.look()
    assert watch.look() is not None
    assert watch.trouble is None
