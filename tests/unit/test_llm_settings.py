"""Settings of model calls."""

import pytest

from libs.llm.settings import LLMSettings
from libs.settings import SettingsError, load


def test_defaults_are_the_documented_ones() -> None:
    settings = load(LLMSettings)
    assert (settings.llm_temperature, settings.llm_top_p, settings.llm_max_output_tokens) == (0.2, 0.9, 512)
    limits = settings.limits()
    assert (limits.total_s, limits.connect_s, limits.first_token_s, limits.idle_s) == (20, 2, 10, 5)
    assert str(settings.prompts_lock) == "configs/llm_prompts.lock"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLM_TEMPERATURE", "warm"),
        ("LLM_TEMPERATURE", "nan"),
        ("LLM_TOP_P", "0"),
        ("LLM_DEADLINE_S", "-1"),
        ("LLM_DEADLINE_S", "inf"),
        ("LLM_MAX_OUTPUT_TOKENS", "1.5"),
        ("LLM_AB_BUCKETS", "policy"),
        ("LLM_CACHE_TTL_S", "-1"),
    ],
)
def test_an_unreadable_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        load(LLMSettings)
