"""The file of upstreams: what it says, and one clear error for each way to get it wrong."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from libs.upstreams.config import UpstreamConfigError, load_entries
from libs.upstreams.settings import UpstreamSettings

ROOT = Path(__file__).parents[2]
LEXI = "upstreams:\n- {name: lexi, slots: 8, shares: {forecast: 4}}\n"


def settings(path: Path, **values: object) -> UpstreamSettings:
    return UpstreamSettings.model_validate({"upstreams_file": path, **values})


def write(tmp_path: Path, text: str) -> UpstreamSettings:
    path = tmp_path / "upstreams.yaml"
    path.write_text(text, encoding="utf-8")
    return settings(path)


def test_the_shipped_file_is_good_and_lexi_comes_from_the_environment() -> None:
    entries = load_entries(
        settings(
            ROOT / "configs" / "upstreams.yaml",
            llm_base_url="http://10.0.0.5:9000/gpu/v1/",
            llm_model="Big",
            llm_api_key=SecretStr("k"),
            llm_max_tokens=8192,
        )
    )
    lexi = entries["lexi"]
    assert (lexi.model, lexi.context, lexi.dialect) == ("Big", 8192, "auto")
    assert lexi.api_key is not None
    assert lexi.api_key.get_secret_value() == "k"
    assert (lexi.origin, lexi.api_path, lexi.root_path) == ("http://10.0.0.5:9000", "/gpu/v1", "/gpu")
    assert all(0 < share <= lexi.slots for share in lexi.shares.values())


def test_a_second_entry_with_key_and_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTED_KEY", "secret")
    text = (
        "upstreams:\n"
        "- {name: lexi, slots: 8, fallback: [hosted]}\n"
        "- {name: hosted, model: m, base_url: 'https://api.example.com/v1', dialect: openai, slots: 2, context: 100,"
        " api_key_env: HOSTED_KEY}\n"
    )
    entries = load_entries(write(tmp_path, text))
    assert entries["lexi"].fallback == ("hosted",)
    hosted = entries["hosted"]
    assert hosted.api_key == SecretStr("secret")
    assert (hosted.origin, hosted.context, hosted.shares) == ("https://api.example.com", 100, {})
    assert "secret" not in repr(hosted)


def test_a_key_is_also_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("from-file\n")
    monkeypatch.setenv("HOSTED_KEY_FILE", str(tmp_path / "key"))
    text = LEXI + "- {name: h, model: m, base_url: 'http://h/v1', slots: 1, api_key_env: HOSTED_KEY}\n"
    assert load_entries(write(tmp_path, text))["h"].api_key == SecretStr("from-file")


def other(fields: str) -> str:
    return LEXI + "- {name: o, model: m, base_url: 'http://h/v1', slots: 2, " + fields + "}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("upstreams: [", "line 1, column 13"),
        ("[]", "the whole: "),
        ("upstreams: []", "upstreams: "),
        ("upstreams: [3]", "entry #1"),
        ("upstreams: [{slots: 3}]", "entry #1: name"),
        ("upstreams: [{name: other, model: m, base_url: 'http://h/v1', slots: 1}]", "entry lexi: name"),
        ("upstreams: [{name: lexi}]", "entry lexi: slots"),
        ("upstreams: [{name: lexi, slots: 0}]", "entry lexi: slots"),
        ("upstreams: [{name: lexi, slots: '8'}]", "entry lexi: slots"),
        ("upstreams: [{name: lexi, slots: 8, slotz: 1}]", "entry lexi: slotz"),
        ("upstreams: [{name: lexi, slots: 8, dialect: tgi}]", "entry lexi: dialect"),
        ("upstreams: [{name: lexi, slots: 8, base_url: 'http://h/v1'}]", "entry lexi: base_url: .*LLM_BASE_URL"),
        ("upstreams: [{name: lexi, slots: 8, model: m}]", "entry lexi: model: .*LLM_MODEL"),
        ("upstreams: [{name: lexi, slots: 8, shares: {forecasts: 1}}]", "entry lexi: shares.forecasts: no such role"),
        ("upstreams: [{name: lexi, slots: 8, shares: {api: 9}}]", "entry lexi: shares.api: 9"),
        ("upstreams: [{name: lexi, slots: 8, shares: {api: -1}}]", "entry lexi: shares.api: -1"),
        ("upstreams: [{name: lexi, slots: 8, fallback: [lexi]}]", "entry lexi: fallback: 'lexi'"),
        ("upstreams: [{name: lexi, slots: 8, fallback: [gone]}]", "entry lexi: fallback: 'gone'"),
        (LEXI + "- {name: lexi, slots: 1}\n", "entry lexi: name: it is there twice"),
        (LEXI + "- {name: o, base_url: 'http://h/v1', slots: 1}\n", "entry o: model"),
        (LEXI + "- {name: o, model: m, slots: 1}\n", "entry o: base_url"),
        (LEXI + "- {name: o, model: m, base_url: 'ftp://h/v1', slots: 1}\n", "entry o: base_url: not an http"),
        (LEXI + "- {name: o, model: m, base_url: 'http://h:99999/v1', slots: 1}\n", "entry o: base_url"),
        (LEXI + "- {name: o, model: m, base_url: 'http://me:pw@h/v1', slots: 1}\n", "entry o: base_url: user names"),
        (other("api_key_env: NOT_SET_ANYWHERE"), "entry o: api_key_env: neither NOT_SET_ANYWHERE"),
        (other("context: 0"), "entry o: context"),
        (other("queue_tokens: 0"), "entry o: queue_tokens"),
    ],
)
def test_each_mistake_names_file_entry_and_field(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UpstreamConfigError, match=said) as caught:
        load_entries(write(tmp_path, text))
    assert str(tmp_path / "upstreams.yaml") in str(caught.value)


def test_a_key_that_no_header_can_hold_names_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTED_KEY", "sécret\n")
    text = LEXI + "- {name: h, model: m, base_url: 'http://h/v1', slots: 1, api_key_env: HOSTED_KEY}\n"
    with pytest.raises(UpstreamConfigError, match="entry h: the key in HOSTED_KEY") as caught:
        load_entries(write(tmp_path, text))
    assert "cret" not in str(caught.value)
    path = tmp_path / "upstreams.yaml"
    path.write_text(LEXI)
    with pytest.raises(UpstreamConfigError, match="LLM_API_KEY"):
        load_entries(settings(path, llm_api_key=SecretStr("two\r\nlines")))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UpstreamConfigError, match=r"nowhere\.yaml: cannot be read"):
        load_entries(settings(tmp_path / "nowhere.yaml"))


def test_a_bad_address_of_lexi_names_its_variable(tmp_path: Path) -> None:
    path = tmp_path / "upstreams.yaml"
    path.write_text(LEXI)
    with pytest.raises(UpstreamConfigError, match=r"LLM_BASE_URL: not an http"):
        load_entries(settings(path, llm_base_url="127.0.0.1:8008"))
