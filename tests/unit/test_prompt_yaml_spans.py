"""Writing into the prompts' YAML: what is meant changes, and not a byte beside it."""

import difflib
from collections.abc import Sequence

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from libs.llm.commands.yaml_spans import Arms, SpanError, rewritten

FILE = """# what the desk asks
verdict:
  # chosen on a Monday
  version: '1.0.0'   # see the report
  experiment:   # the second try
    unit: ticker
    arms:
      # control
      "1.0.0": 90   # most
      "1.1.0": 10   # few
    # ends in March
    guardrails: {invalid_rate: 0.1}

  # the texts
  versions:
    "1.0.0": {user_template: "version: \\"1.0.0\\" {{ x }}"}   # keep
note:
  version: &first "1.0.0"
  versions:
    *first :
      user_template: |-
        two
        lines
"""
PLAIN = FILE[: FILE.index("  experiment:")] + FILE[FILE.index("  # the texts") :]
TWO: Arms = (("1.0.0", 75.0), ("1.1.0", 25.0))


def changed(text: str, *, version: str = "1.0.0", arms: Arms = (), key: str = "verdict") -> tuple[list[str], list[str]]:
    """The lines that went and the lines that came."""
    new = rewritten(text, key, version=version, arms=arms)
    lines = list(difflib.ndiff(text.splitlines(keepends=True), new.splitlines(keepends=True)))
    return [line[2:] for line in lines if line[0] == "-"], [line[2:] for line in lines if line[0] == "+"]


def test_the_version_alone_is_replaced_in_its_own_quotes() -> None:
    arms = (("1.0.0", 90.0), ("1.1.0", 10.0))
    assert changed(FILE, version="1.1.0", arms=arms) == (
        ["  version: '1.0.0'   # see the report\n"],
        ["  version: '1.1.0'   # see the report\n"],
    )
    assert changed(FILE, arms=arms) == ([], [])


def test_weights_are_replaced_one_by_one_and_comments_stay() -> None:
    assert changed(FILE, arms=(("1.0.0", 90.0), ("1.1.0", 12.5))) == (
        ['      "1.1.0": 10   # few\n'],
        ['      "1.1.0": 12.5   # few\n'],
    )


def test_other_arms_are_written_anew_in_the_same_form() -> None:
    gone, came = changed(FILE, arms=(("1.0.0", 99.0), ("1.2.0", 1.0)))
    assert gone == ['      "1.0.0": 90   # most\n', '      "1.1.0": 10   # few\n']
    assert came == ['      "1.0.0": 99\n', '      "1.2.0": 1   # few\n']
    braces = PLAIN.replace("  # the texts\n", "  experiment: {arms: {'1.0.0': 1}}\n")
    assert changed(braces, arms=TWO)[1] == ['  experiment: {arms: {"1.0.0": 75, "1.1.0": 25}}\n']


def test_an_ended_experiment_goes_and_what_stands_below_stays() -> None:
    gone, came = changed(FILE)
    assert (gone[0], gone[-1], came) == (
        "  experiment:   # the second try\n",
        "    guardrails: {invalid_rate: 0.1}\n",
        [],
    )
    assert "  # the texts\n" not in gone


def test_an_experiment_that_was_not_there_comes_below_the_version() -> None:
    assert changed(PLAIN, version="1.1.0", arms=TWO) == (
        ["  version: '1.0.0'   # see the report\n"],
        ["  version: '1.1.0'   # see the report\n", '  experiment: {arms: {"1.0.0": 75, "1.1.0": 25}}\n'],
    )


def test_the_ends_of_lines_stay_as_they_are() -> None:
    windows = PLAIN.replace("\n", "\r\n")
    new = rewritten(windows, "verdict", version="1.0.0", arms=TWO)
    assert new.replace("\r\n", "") == rewritten(PLAIN, "verdict", version="1.0.0", arms=TWO).replace("\n", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("verdict: {version: '1.0.0', versions: {}}\n", "braces"),
        ("verdict: [1]\n", "holds no names"),
        ("other:\n  version: '1.0.0'\n", "verdict does not stand there"),
        ("verdict:\n  versions: {}\n", "version does not stand there"),
        ("base: &b {version: '1.0.0'}\nverdict:\n  <<: *b\n  versions: {}\n", "version does not stand there"),
        ("first: &v '1.0.0'\nverdict:\n  version: *v\n  versions: {}\n", "alias"),
        ("e: &e {arms: {'1.0.0': 1}}\nverdict:\n  version: '1.0.0'\n  experiment: *e\n", "alias"),
        ("verdict:\n  version: [1]\n", "not a number in quotes"),
        ("verdict:\n  version: '1.0.0'", "nothing stands below"),
        ("verdict:\n  version: '1.0.0'\n  experiment: {unit: ticker}\n", "arms does not stand there"),
        ("verdict: [\n", "is not YAML"),
        ("", "empty"),
    ],
)
def test_what_cannot_be_replaced_is_refused(text: str, words: str) -> None:
    with pytest.raises(SpanError, match=words):
        rewritten(text, "verdict", version="1.1.0", arms=TWO)


numbers = st.from_regex(r"[0-9]\.[0-9]\.[0-9]", fullmatch=True)
weights = st.integers(1, 1000).map(float) | st.floats(0.001, 100).map(lambda weight: round(weight, 3))
some_arms = st.lists(st.tuples(numbers, weights), max_size=4, unique_by=lambda arm: arm[0]).map(tuple)


@given(some_arms, numbers, st.sampled_from(["braces", "lines", "none"]), some_arms)
def test_what_was_written_is_read_back_and_all_else_is_as_before(
    arms: Arms, version: str, form: str, before: Sequence[tuple[str, float]]
) -> None:
    assume(before or form == "none")
    written = [f'"{name}": {weight}' for name, weight in before]
    inside = {
        "none": "",
        "braces": f"  experiment: {{unit: ticker, arms: {{{', '.join(written)}}}}}\n",
        "lines": "".join(["  experiment:\n", "    arms:\n", *(f"      {line}\n" for line in written)]),
    }[form]
    text = PLAIN.replace("# see the report\n", f"# see the report\n{inside}")
    old, new = (yaml.safe_load(one) for one in (text, rewritten(text, "verdict", version=version, arms=arms)))
    assert new["verdict"].pop("version") == version
    experiment = new["verdict"].pop("experiment", {})
    assert list(experiment.get("arms", {}).items()) == list(arms)
    assert experiment.get("unit") == ("ticker" if form == "braces" and arms else None)
    old["verdict"].pop("version")
    old["verdict"].pop("experiment", None)
    assert new == old
