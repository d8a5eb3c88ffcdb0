"""`.env.example` documents every setting and sets none."""

from tools.env_example import EXAMPLE, render


def test_the_file_is_what_the_settings_classes_say() -> None:
    assert EXAMPLE.read_text(encoding="utf-8") == render()


def test_every_line_is_commented_out() -> None:
    assert [line for line in render().splitlines() if line and not line.startswith("#")] == []


def test_no_secret_has_a_value() -> None:
    lines = [line.removeprefix("# ") for line in render().splitlines()]
    for secret in ("LLM_API_KEY", "DATABASE_URL"):
        assert f"{secret}=" in lines
