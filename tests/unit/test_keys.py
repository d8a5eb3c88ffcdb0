"""The key file: who is let in, what a change or a break of the file does, and the command that makes keys."""

import asyncio
import json
import stat
from pathlib import Path

import httpx
import pytest
from fastapi import Depends, FastAPI
from hypothesis import given
from hypothesis import strategies as st

from libs import problems
from libs.keys import (
    ALL_SCOPES,
    Key,
    KeyFileError,
    KeyRing,
    create_key,
    digest,
    ensure_operator_key,
    parse_scopes,
    read_keys,
    require,
)
from libs.keys.__main__ import main
from tests.unit.test_makefile import make


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keys.json"


def scopes(*names: str) -> frozenset[object]:
    return frozenset(names)


def test_a_made_key_is_known_and_only_its_hash_is_kept(path: Path) -> None:
    token = create_key(path, "desk-1", parse_scopes("infer,read"))
    key = KeyRing.load(path).identify(token)
    assert key is not None
    assert (key.name, key.scopes) == ("desk-1", scopes("infer", "read"))
    assert token not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_wrong_key_is_nobody(path: Path) -> None:
    token = create_key(path, "desk-1", parse_scopes("read"))
    ring = KeyRing.load(path)
    assert ring.identify(token + "x") is None
    assert ring.identify("") is None
    assert ring.identify(digest(token)) is None


def test_a_change_of_the_file_is_seen_at_once(path: Path) -> None:
    ring = KeyRing.load(path)
    assert ring.empty
    assert "no key file" in (asyncio.run(ring.check()) or "")
    token = create_key(path, "desk-1", parse_scopes("read"))
    assert ring.identify(token) is not None
    assert asyncio.run(ring.check()) is None
    path.unlink()
    assert ring.identify(token) is None


@pytest.mark.parametrize(
    "broken", ["", "[", "{}", '[{"name": "x"}]', '[{"name": "x", "sha256": "zz", "scopes": []}]', "\x00"]
)
def test_a_broken_file_keeps_the_last_good_keys_and_turns_ready_yellow(path: Path, broken: str) -> None:
    token = create_key(path, "desk-1", parse_scopes("read"))
    ring = KeyRing.load(path)
    good = path.read_text()
    path.write_text(broken)
    assert ring.identify(token) is not None
    assert str(path) in (asyncio.run(ring.check()) or "")
    path.write_text(good + "\n")
    assert ring.identify(token) is not None
    assert asyncio.run(ring.check()) is None


def test_a_broken_file_at_the_start_lets_nobody_in(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("[{}]")
    ring = KeyRing.load(path)
    assert ring.empty
    with pytest.raises(KeyFileError, match=r"0\.name"):
        read_keys(path)


def test_unknown_fields_unknown_scopes_and_names_used_twice_are_refused(path: Path) -> None:
    path.parent.mkdir()
    entry = {"name": "a", "sha256": digest("x"), "scopes": ["read"]}
    for wrong, named in (
        ([{**entry, "scope": "read"}], r"0\.scope"),
        ([{**entry, "scopes": ["root"]}], r"0\.scopes"),
        ([entry, entry], "the name a is there twice"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(KeyFileError, match=named):
            read_keys(path)


def test_an_entry_may_say_models_priority_limits_cache_and_record(path: Path) -> None:
    path.parent.mkdir()
    entry = {
        "name": "batch",
        "sha256": digest("x"),
        "scopes": ["infer"],
        "models": ["Lexi"],
        "priority": "batch",
        "limits": {"requests_per_minute": 60, "choices": 8},
        "cache": "off",
        "record": "body",
    }
    path.write_text(json.dumps([entry]))
    (key,) = read_keys(path)
    assert (key.models, key.priority, key.limits.requests_per_minute) == (("Lexi",), "batch", 60)
    assert (key.limits.choices, key.cache, key.record) == (8, "off", "body")


def test_the_operator_key_has_all_scopes_and_survives_a_restart(tmp_path: Path, path: Path) -> None:
    other = create_key(path, "desk-1", parse_scopes("read"))
    token = ensure_operator_key(path, tmp_path)
    assert ensure_operator_key(path, tmp_path) == token
    plain = tmp_path / "operator.key"
    assert plain.read_text().strip() == token
    assert stat.S_IMODE(plain.stat().st_mode) == 0o600
    ring = KeyRing.load(path)
    key = ring.identify(token)
    assert key is not None
    assert key.scopes == frozenset(ALL_SCOPES)
    assert ring.identify(other) is not None


def test_a_lost_operator_key_is_replaced_and_the_old_one_ends(tmp_path: Path, path: Path) -> None:
    old = ensure_operator_key(path, tmp_path)
    (tmp_path / "operator.key").unlink()
    new = ensure_operator_key(path, tmp_path)
    ring = KeyRing.load(path)
    assert ring.identify(new) is not None
    assert ring.identify(old) is None
    path.unlink()
    assert ensure_operator_key(path, tmp_path) == new
    assert ring.identify(new) is not None


def test_the_command_prints_the_key_once_and_refuses_a_name_in_use(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["desk-1", "infer,read", "--file", str(path)]) == 0
    shown = capsys.readouterr()
    assert KeyRing.load(path).identify(shown.out.strip()) is not None
    assert shown.out.strip() not in shown.err
    before = path.read_bytes()
    assert main(["desk-1", "read", "--file", str(path)]) == 2
    assert "desk-1" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "named"), [(["x", "root"], "root"), (["x", ","], "scope"), (["a/b", "read"], "a/b")]
)
def test_the_command_names_what_it_refuses(
    path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert main([*arguments, "--file", str(path)]) == 2
    assert named in capsys.readouterr().err
    assert not path.exists()


def test_the_command_stores_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_STATE", str(tmp_path / "local"))
    assert main(["desk-1", "all"]) == 0
    token = capsys.readouterr().out.strip()
    key = KeyRing.load(tmp_path / "local" / "keys.json").identify(token)
    assert key is not None
    assert key.scopes == frozenset(ALL_SCOPES)
    assert {file.name for file in (tmp_path / "local").iterdir()} == {"keys.json", ".keys.json.lock"}


@given(st.sets(st.sampled_from(ALL_SCOPES), min_size=1), st.sampled_from([",", " , ", ",,"]))
def test_scopes_are_read_as_written(wanted: set[str], separator: str) -> None:
    assert parse_scopes(separator.join(sorted(wanted))) == wanted


@given(st.text() | st.lists(st.sampled_from(ALL_SCOPES)).map(",".join))
def test_any_text_is_scopes_or_refused(words: str) -> None:
    known = set(ALL_SCOPES)
    named = [word.strip() for word in words.split(",") if word.strip()]
    if words.strip() == "all" or (named and set(named) <= known):
        assert parse_scopes(words)
        return
    with pytest.raises(KeyFileError, match="there are: infer"):
        parse_scopes(words)


def guarded(path: Path) -> httpx.AsyncClient:
    app = FastAPI()
    app.state.keys = KeyRing.load(path)
    problems.install(app)

    @app.get("/thing")
    def thing(key: Key = Depends(require("read"))) -> str:  # noqa: B008 - FastAPI's own way
        return key.name

    assert thing
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_the_guard_says_who_may(path: Path) -> None:
    reader = create_key(path, "reader", parse_scopes("read"))
    writer = create_key(path, "writer", parse_scopes("ingest"))
    async with guarded(path) as http:
        answers = {
            name: await http.get("/thing", headers=headers)
            for name, headers in {
                "reader": {"Authorization": f"Bearer {reader}"},
                "lower": {"Authorization": f"bearer {reader}"},
                "writer": {"Authorization": f"Bearer {writer}"},
                "wrong": {"Authorization": "Bearer lexi_wrong"},
                "basic": {"Authorization": f"Basic {reader}"},
                "none": {},
            }.items()
        }
    assert {name: answer.status_code for name, answer in answers.items()} == {
        "reader": 200,
        "lower": 200,
        "writer": 403,
        "wrong": 401,
        "basic": 401,
        "none": 401,
    }
    assert answers["reader"].json() == "reader"
    assert "ingest" not in answers["writer"].json()["detail"]
    assert "read" in answers["writer"].json()["detail"]
    assert answers["none"].headers["www-authenticate"] == "Bearer"
    assert answers["wrong"].headers["content-type"] == "application/problem+json"


async def test_without_a_key_file_every_guarded_route_refuses_and_says_why(path: Path) -> None:
    async with guarded(path) as http:
        answer = await http.get("/thing", headers={"Authorization": "Bearer lexi_whatever"})
    assert answer.status_code == 401
    assert "make key" in answer.json()["detail"]


def test_the_command_writes_what_a_key_may_do_and_nothing_else(path: Path) -> None:
    asked = "--models a,b --priority batch --rpm 60 --tpm 100000 --concurrent 8 --cache on --record body"
    assert main(["desk-1", "infer,read", "--file", str(path), *asked.split()]) == 0
    assert main(["plain", "read", "--file", str(path)]) == 0
    limited, plain = json.loads(path.read_text())
    assert list(plain) == ["name", "sha256", "scopes"]
    assert {name: value for name, value in limited.items() if name != "sha256"} == {
        "name": "desk-1",
        "scopes": ["infer", "read"],
        "models": ["a", "b"],
        "priority": "batch",
        "limits": {"requests_per_minute": 60, "tokens_per_minute": 100000, "concurrent": 8},
        "cache": "on",
        "record": "body",
    }


@pytest.mark.parametrize(
    ("option", "named"),
    [("--rpm=0", "limits.requests_per_minute"), ("--cache=yes", "cache"), ("--priority=urgent", "priority")],
)
def test_the_command_names_an_option_that_it_refuses(
    path: Path, capsys: pytest.CaptureFixture[str], option: str, named: str
) -> None:
    assert main(["desk-1", "infer", "--file", str(path), option]) == 2
    assert capsys.readouterr().err.startswith(f"{named}: ")
    assert not path.exists()


def test_make_key_hands_every_option_on() -> None:
    words = "MODELS=a,b PRIORITY=batch RPM=60 TPM=100 CONCURRENT=8 CHOICES=2 CACHE=on RECORD=body"
    shown = make("-n", "-o", "install", "key", "NAME=desk-1", "SCOPES=infer", *words.split()).stdout
    given = " ".join(shown.replace("\\\n", " ").split())
    assert (
        'libs.keys "desk-1" "infer" --models "a,b" --priority "batch" --rpm "60" --tpm "100" --concurrent "8" '
        '--choices "2" --cache "on" --record "body"'
    ) in given
    bare = make("-n", "-o", "install", "key", "NAME=desk-1", "SCOPES=infer").stdout
    assert "--" not in bare.partition("libs.keys")[2]


def test_a_key_is_found_among_many_and_answers_come_from_the_cache_only_where_it_says_so(path: Path) -> None:
    path.parent.mkdir()
    entries = [{"name": f"n{number}", "sha256": digest(f"t{number}"), "scopes": ["infer"]} for number in range(500)]
    path.write_text(json.dumps([*entries[:-1], {**entries[-1], "cache": "on"}]))
    ring = KeyRing.load(path)
    found = [ring.identify(f"t{number}") for number in range(500)]
    assert [key.name for key in found if key is not None] == [f"n{number}" for number in range(500)]
    assert [key.name for key in found if key is not None and key.cache == "on"] == ["n499"]


def test_what_the_operators_key_rewrites_keeps_every_other_entry_whole(tmp_path: Path, path: Path) -> None:
    create_key(path, "desk-1", parse_scopes("infer"), limits={"concurrent": 3}, models=("m",), record="body")
    before = read_keys(path)
    ensure_operator_key(path, tmp_path)
    assert read_keys(path)[1:] == before
