"""Settings come from the environment, are strict, and name the variable they cannot read."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, SecretStr, ValidationError

from libs.settings import FALSE_WORDS, TRUE_WORDS, Flag, Settings, SettingsError, load, parse_flag


class Example(Settings):
    """An example."""

    model_config = Settings.model_config | {"env_prefix": "EXAMPLE_"}

    port: int = Field(8001, ge=1)
    on: Flag = False
    token: SecretStr | None = None


def test_an_unreadable_value_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_PORT", "eight")
    monkeypatch.setenv("EXAMPLE_ON", "maybe")
    with pytest.raises(SettingsError) as caught:
        load(Example)
    assert "EXAMPLE_PORT='eight'" in str(caught.value)
    assert "EXAMPLE_ON='maybe': Value error, a flag is 1/true/yes/on or 0/false/no/off" in str(caught.value)


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_PORT", "")
    assert load(Example).port == 8001


def test_a_secret_is_read_from_its_file_and_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret\n")
    monkeypatch.setenv("EXAMPLE_TOKEN_FILE", str(secret))
    settings = load(Example)
    assert settings.token is not None
    assert settings.token.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(settings)


def test_the_variable_wins_over_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file")
    monkeypatch.setenv("EXAMPLE_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("EXAMPLE_TOKEN", "from-variable")
    settings = load(Example)
    assert settings.token is not None
    assert settings.token.get_secret_value() == "from-variable"


def test_an_empty_secret_file_counts_as_unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    monkeypatch.setenv("EXAMPLE_TOKEN_FILE", str(tmp_path / "token"))
    assert load(Example).token is None


def test_a_secret_file_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXAMPLE_TOKEN_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match=r"EXAMPLE_TOKEN_FILE: cannot read .*nowhere"):
        load(Example)


def test_settings_cannot_be_changed_after_the_start() -> None:
    with pytest.raises(ValidationError):
        load(Example).port = 1  # pyright: ignore[reportAttributeAccessIssue]


@given(st.text())
def test_a_flag_is_one_of_eight_words_and_nothing_else(word: str) -> None:
    known = word.strip().lower()
    if known in TRUE_WORDS or known in FALSE_WORDS:
        assert parse_flag(word) is (known in TRUE_WORDS)
    else:
        with pytest.raises(ValueError, match="a flag is"):
            parse_flag(word)
