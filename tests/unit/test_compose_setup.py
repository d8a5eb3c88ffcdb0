"""What the Compose stack does before anything else: its secrets, and who may read them."""

import json
import os
import socket
import stat
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from libs.keys import digest
from tools.compose import healthy
from tools.compose.secret_files import MAKERS, SecretError, main, make_missing
from tools.compose.setup import Place, database_url, setup

ME = os.getuid()
PAPER = ("paper_key_id", "alpaca_key_id")


def places(root: Path) -> tuple[Place, ...]:
    ours, postgres = Place(root / "ours", ME, PAPER), Place(root / "postgres", ME, ("postgres_password",))
    for place in (ours, postgres):
        place.folder.mkdir(parents=True, exist_ok=True)
    (root / "keys").mkdir(exist_ok=True)
    return ours, postgres


def test_secrets_are_made_private_and_random(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert make_missing(first) == list(MAKERS)
    make_missing(second)
    assert {stat.S_IMODE((first / name).stat().st_mode) for name in MAKERS} == {0o600}
    assert (first / "operator.key").read_text().startswith("lexi_")
    assert (first / "alpaca_key_id").read_text() == ""
    for name in ("postgres_password", "operator.key", "llm_api_key", "paper_key_id", "grafana_password"):
        assert len((first / name).read_text().strip()) >= 43
        assert (first / name).read_text() != (second / name).read_text()


def test_what_is_there_is_never_changed(tmp_path: Path) -> None:
    (tmp_path / "llm_api_key").write_text("mine")
    (tmp_path / "postgres_password").write_text("")
    made = make_missing(tmp_path)
    assert "llm_api_key" not in made
    assert (tmp_path / "llm_api_key").read_text() == "mine"
    assert (tmp_path / "postgres_password").read_text() == ""
    assert make_missing(tmp_path) == []


def test_a_folder_in_the_place_of_a_secret_is_named(tmp_path: Path) -> None:
    (tmp_path / "operator.key").mkdir()
    with pytest.raises(SecretError, match=r"operator\.key is a folder"):
        make_missing(tmp_path)


def test_the_command_prints_names_and_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "made" in said
    assert (tmp_path / "operator.key").read_text().strip() not in said
    main([str(tmp_path)])
    assert "none was changed" in capsys.readouterr().out


def test_each_user_gets_what_it_needs_and_the_operator_a_key(tmp_path: Path) -> None:
    host, (ours, postgres) = tmp_path / "host", places(tmp_path)
    setup(host, tmp_path / "keys", (ours, postgres))
    password = (host / "postgres_password").read_text().strip()
    assert sorted(path.name for path in ours.folder.iterdir()) == ["alpaca_key_id", "database_url", "paper_key_id"]
    assert [path.name for path in postgres.folder.iterdir()] == ["postgres_password"]
    assert (postgres.folder / "postgres_password").read_text() == password
    assert (ours.folder / "database_url").read_text() == f"postgresql://lexi:{password}@postgres:5432/lexi"
    assert stat.S_IMODE((ours.folder / "database_url").stat().st_mode) == 0o440
    token = (host / "operator.key").read_text().strip()
    (entry,) = json.loads((tmp_path / "keys" / "keys.json").read_text())
    assert (entry["name"], entry["sha256"]) == ("operator", digest(token))
    assert token not in (tmp_path / "keys" / "keys.json").read_text()


def test_a_second_start_takes_up_a_changed_secret_and_keeps_other_keys(tmp_path: Path) -> None:
    host, all_places = tmp_path / "host", places(tmp_path)
    setup(host, tmp_path / "keys", all_places)
    keys = tmp_path / "keys" / "keys.json"
    other = {"name": "quant", "sha256": "0" * 64, "scopes": ["read"]}
    keys.write_text(json.dumps([*json.loads(keys.read_text()), other]))
    (host / "paper_key_id").write_text("another\n")
    assert setup(host, tmp_path / "keys", all_places) == []
    assert (all_places[0].folder / "paper_key_id").read_text() == "another"
    assert [entry["name"] for entry in json.loads(keys.read_text())] == ["operator", "quant"]


def test_an_empty_password_is_refused(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "postgres_password").write_text("\n")
    with pytest.raises(SecretError, match="postgres_password is empty"):
        setup(tmp_path / "host", tmp_path / "keys", places(tmp_path))


def test_a_password_of_ones_own_may_hold_anything() -> None:
    assert database_url("a/b@c:d%") == "postgresql://lexi:a%2Fb%40c%3Ad%25@postgres:5432/lexi"


@contextmanager
def answering(answer: bytes) -> Generator[int]:
    """A port that answers one connection with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 0),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n 200 ", 1),
        (b"HTTP/1.1 404 x 200\r\n\r\n", 1),
        (b"", 1),
    ],
)
def test_only_a_200_is_healthy(answer: bytes, code: int) -> None:
    with answering(answer) as port:
        assert healthy.main([str(port)]) == code


def test_nobody_there_is_unhealthy_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert healthy.main([str(port)]) == 1
    assert f"no answer on port {port}" in capsys.readouterr().out
