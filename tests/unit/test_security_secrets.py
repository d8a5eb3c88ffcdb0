"""Secrets stay where they belong: not in the tree, not in settings that are printed, not in logs, not in answers."""

import importlib
import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from libs import telemetry
from libs.keys import ALL_SCOPES, PREFIX, KeyRing, create_key, digest
from libs.settings import environment_name, is_secret
from tools.env_example import settings_classes

ROOT = Path(__file__).parents[2]
LARGEST = 2_000_000
LOOKS_SECRET = {
    "a key of this house": re.compile(r"\blexi_[A-Za-z0-9_-]{43}\b"),
    "a key of OpenAI or Anthropic": re.compile(r"\bsk-(ant-|proj-)?[A-Za-z0-9_-]{32,}"),
    "a key of AWS": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a key of Alpaca": re.compile(r"\b[PA]K[0-9A-Z]{18}\b"),
    "a token of GitHub": re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})\b"),
    "a token of Slack": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{20,}"),
    "a token of Hugging Face": re.compile(r"\bhf_[A-Za-z0-9]{34}\b"),
    "a key of Google": re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
    "a private key": re.compile(r"-----BEGIN ([A-Z]+ )?PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}"),
    "a webhook of Slack": re.compile(r"hooks\.slack\.com/services/T[A-Z0-9]{8,}/B[A-Z0-9]{8,}/[A-Za-z0-9]{20,}"),
    "a password in an address": re.compile(
        r"postgres(?:ql)?://[^/\s:@'\"{]+:(?!\*|\.|…|secret|pass|hunter|[{$<])[^/\s@'\"{}$<]{8,}@"
    ),
}
MADE_UP_IN_TESTS = "a password in an address"
SECRET_WORD = re.compile(r"(key|secret|password|token|webhook|database_url)(_id)?$")
NO_SECRET = {"LLM_MAX_TOKENS", "LLM_MAX_OUTPUT_TOKENS"}


def tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return [ROOT / name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def secrets_in(text: str) -> list[str]:
    return [what for what, pattern in LOOKS_SECRET.items() if pattern.search(text)]


def test_no_file_of_the_tree_holds_what_looks_like_a_secret() -> None:
    found = {
        str(path.relative_to(ROOT)): what
        for path in tracked()
        if path.stat().st_size <= LARGEST and (what := secrets_in(path.read_bytes().decode("utf-8", "replace")))
    }
    made_up = {place for place, what in found.items() if place.startswith("tests/") and what == [MADE_UP_IN_TESTS]}
    assert {place: what for place, what in found.items() if place not in made_up} == {}


@pytest.mark.parametrize(
    ("what", "example"),
    [
        ("a key of this house", PREFIX + "a1" * 21 + "b"),
        ("a key of AWS", "AKIA" + "ABCDEFGH12345678"),
        ("a token of GitHub", "ghp" + "_" + "a" * 36),
        ("a private key", "-----BEGIN RSA PRIVATE " + "KEY-----\n" + "A" * 64),
        ("a password in an address", "postgresql://lexi:" + "correcthorse" + "@db/lexi"),
    ],
)
def test_it_sees_what_it_looks_for(what: str, example: str) -> None:
    assert what in secrets_in(f"x = '{example}'")


def test_state_and_secrets_are_kept_out_of_the_repository() -> None:
    for name in (".env", ".local/operator.key", "secrets/postgres_password", ".audit/sbom.json"):
        done = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False)
        assert done.returncode == 0, f"{name} would be committed"


def test_every_setting_that_is_a_secret_is_typed_as_one_and_has_no_default() -> None:
    """So it can come from a file, is never printed with an error, and nothing starts with a password of ours."""
    for cls in settings_classes():
        for name, field in cls.model_fields.items():
            variable = environment_name(cls, name)
            if SECRET_WORD.search(name) and variable not in NO_SECRET:
                assert is_secret(field), f"{variable} is no SecretStr"
            if is_secret(field):
                assert field.is_required() or field.default in {None, SecretStr("")}, f"{variable} has a default"


def test_compose_has_no_password_of_its_own() -> None:
    for name in ("docker-compose.yml", ".env.template", ".env.example"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            found = re.match(r"\s*[-#\s]*([A-Z_]*(PASSWORD|SECRET|API_KEY|TOKEN))\s*[:=]\s*(\S.*)?$", line)
            assert found is None or not found[3] or found[3].startswith(("${", "#")), f"{name}: {line}"


def test_a_key_is_long_random_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    tokens = {create_key(path, f"key-{number}", frozenset({"read"})) for number in range(20)}
    assert len(tokens) == 20
    assert all(len(token.removeprefix(PREFIX)) >= 43 for token in tokens)  # 256 bits
    kept = path.read_text()
    assert not any(token in kept or token.removeprefix(PREFIX) in kept for token in tokens)
    assert path.stat().st_mode & 0o077 == 0


def test_a_key_is_looked_up_by_its_hash_and_never_compared_letter_by_letter(tmp_path: Path) -> None:
    """What differs in one letter has nothing in common with the stored hash, so time tells nothing about a key."""
    path = tmp_path / "keys.json"
    token = create_key(path, "one", frozenset({"read"}))
    ring = KeyRing.load(path)
    near = token[:-1] + ("a" if token[-1] != "a" else "b")
    assert ring.identify(token) is not None
    assert ring.identify(near) is None
    assert ring.identify_header(f"Bearer {near}".encode()) is None
    assert sum(one == other for one, other in zip(digest(token), digest(near), strict=True)) < 24


def test_there_is_no_key_that_opens_everything_by_default(tmp_path: Path) -> None:
    ring = KeyRing.load(tmp_path / "keys.json")
    assert ring.empty
    for guess in ("", "lexi", "admin", "operator", "EMPTY", "none", *ALL_SCOPES):
        assert ring.identify(guess) is None


def test_no_secret_reaches_a_log_line_whatever_way_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through an event's field, its text, a library's own logger, and a traceback."""
    out = io.StringIO()
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    monkeypatch.setattr(sys, "stderr", out)
    structlog = importlib.import_module("structlog")
    token, url = PREFIX + "s3cret" * 8, "postgresql://lexi:s3cretword@db/lexi"
    try:
        telemetry.configure("t")
        log = structlog.get_logger("security")
        log.warning("event", authorization=f"Bearer {token}", database_url=url, api_key=token)
        log.warning("asked with Bearer %s at %s" % (token, url))  # noqa: G002, UP031 - how a careless line looks
        logging.getLogger("a.library").error("connecting to %s with %s", url, token)
        log.warning("settings", value=SecretStr(token))
        try:
            fail(f"cannot connect to {url} with {token}")
        except RuntimeError:
            log.exception("failed")
    finally:
        structlog.reset_defaults()
        root.handlers[:] = before
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert all(json.loads(line) for line in lines)
    assert "s3cret" not in out.getvalue()


def fail(words: str) -> None:
    raise RuntimeError(words)
