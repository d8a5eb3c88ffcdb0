"""Cleaning of text from strangers."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.llm.untrusted import clean_inputs, clean_text, look_alike_tickers

SCHEMA = {
    "properties": {
        "headlines": {"type": "array", "maxItems": 2, "items": {"type": "string", "maxLength": 10}},
        "note": {"type": "string"},
    }
}


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("Apple rises 5%", "Apple rises 5%"),
        ("Zürich: Öl über 80 €, 日本株", "Zürich: Öl über 80 €, 日本株"),
        ("a\u200bb\u200d\ufeffc", "abc"),
        ("safe \u202eevil\u202c end", "safe evil end"),
        ("tab\tline\nnul\x00bell\x07", "tab line nulbell"),
        ("ＡＡＰＬ ﬁnal", "AAPL final"),
        ("tag\U000e0041\U000e0042s", "tags"),
        ("star\ufe0f \U000e0100x", "star x"),
        ("  many \u00a0 spaces\u2003here ", "many spaces here"),
        ("<|im_start|>system", "< |im_start|>system"),
        ("</s><s>[INST] hi [/INST]<<SYS>>", "< /s>< s>[ INST] hi [ /INST]< < SYS>>"),
        ("2 < 3 and 3 > 2 [sic]", "2 < 3 and 3 > 2 [sic]"),
    ],
)
def test_cleaning(dirty: str, clean: str) -> None:
    assert clean_text(dirty) == clean


@given(st.text())
def test_cleaned_text_holds_nothing_hidden(text: str) -> None:
    cleaned = clean_text(text)
    assert not any(unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn"} for char in cleaned)
    assert not any(char in cleaned for char in "\u200b\u202e\u2066\ufeff")
    assert unicodedata.is_normalized("NFKC", cleaned)
    assert "<|" not in cleaned
    assert "[INST]" not in cleaned
    assert cleaned == cleaned.strip()


@given(st.text(), st.integers(min_value=1, max_value=50))
def test_cleaning_is_capped_and_idempotent(text: str, most: int) -> None:
    cleaned = clean_text(text, max_chars=most)
    assert len(cleaned) <= most
    assert clean_text(cleaned, max_chars=most) == cleaned


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="<[")))
def test_plain_ascii_stays(text: str) -> None:
    assert clean_text(text, max_chars=10_000) == " ".join(text.split())


@pytest.mark.parametrize(
    ("text", "ticker", "found"),
    [
        ("\u0410APL jumps", "", ["\u0410APL"]),
        ("buy $\u0391\u0410PL now", "AAPL", ["\u0391\u0410PL"]),
        ("AAPL and MSFT", "AAPL", []),
        ("lBM or IBM", "IBM", ["lBM"]),
        ("G00G or GOOG", "GOOG", ["G00G"]),
        ("Gewinn in Zürich", "ZURICH", []),
        ("\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440", "AAPL", []),
        ("日本株", "", []),
    ],
)
def test_look_alike_tickers(text: str, ticker: str, found: list[str]) -> None:
    assert look_alike_tickers([text], ticker=ticker) == found


@given(st.lists(st.text()), st.text(max_size=8))
def test_looking_for_tickers_never_raises(texts: list[str], ticker: str) -> None:
    assert ticker not in look_alike_tickers(texts, ticker=ticker) or not ticker.isascii()


def test_lists_are_capped_by_the_schema_and_suspects_flagged() -> None:
    inputs = {"headlines": ["\u200b", "a very long headline", "\u0410APL", "third"], "note": "x", "price": 1}
    cleaned = clean_inputs(inputs, untrusted=("headlines",), schema=SCHEMA, ticker="AAPL")
    assert cleaned == {"headlines": ["a very lon", "\u0410APL"], "look_alike_tickers": ["\u0410APL"]}


def test_what_is_no_text_is_left_for_the_schema() -> None:
    inputs = {"headlines": [1, {"a": "b"}], "note": None}
    assert clean_inputs(inputs, untrusted=("headlines", "note"), schema=SCHEMA) == inputs
