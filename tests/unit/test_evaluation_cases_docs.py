"""docs/datasets.md says what the code does: its example is a case, its tables are complete, its messages are real."""

import json
import re
from pathlib import Path

import pytest

from libs.evaluation.cases.attacks import ATTACKS, FAMILIES
from libs.evaluation.cases.case import case_from, document_of
from libs.evaluation.cases.dataset import DatasetError, check
from libs.evaluation.cases.document import CaseDocument, InputsDocument, MomentsDocument
from tests.unit.evaluation_case_values import good_case
from tests.unit.judgement_cases import ROOT
from tools.llm_eval.bundled import KINDS, MADE_BY
from tools.llm_eval.extract_strata import STORED

PAGE = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")


def rows(section: str) -> dict[str, str]:
    """The rest of each table row of a section, by the name in its first cell."""
    found = re.findall(r"^\| `?([^|`]+?)`? \| (.*)$", PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0], re.M)
    return dict(found)


def test_the_example_is_a_case() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    assert case_from(json.loads(block)).target is True


def test_every_field_is_told() -> None:
    fields = set(re.findall(r"`([a-z_]+)`", PAGE.partition("## The file")[2].partition("## What is checked")[0]))
    told = {*CaseDocument.model_fields, *MomentsDocument.model_fields}
    assert told <= fields
    block = re.findall(r"```json\n(.*?)```", PAGE, re.S)[0]
    assert set(json.loads(block)["inputs"]) == set(InputsDocument.model_fields)


def test_every_attack_and_every_kind_is_told() -> None:
    told = rows("The injection suite")
    assert tuple(name for name in told if name in FAMILIES) == FAMILIES
    for family in FAMILIES:
        names = [name for name, attack in ATTACKS.items() if attack.family == family]
        assert re.findall(r"`(\w+)`", told[family])[: len(names)] == names
    kinds = rows("The bundled cases")
    assert {kind: kinds[kind].startswith(f"{share * 100:g} %") for kind, share in KINDS.items()} == dict.fromkeys(
        KINDS, True
    )
    assert MADE_BY in PAGE
    assert all(name in rows("extract") for name in STORED)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("coverage_pct", 9900),
        ("facts", {"borrow": {"value": "none", "as_of": "2012-11-21T08:00:00+00:00", "source": "desk"}}),
    ],
)
def test_the_messages_are_those_of_the_code(place: str, value: object, tmp_path: Path) -> None:
    document = document_of(good_case())
    document["inputs"][place] = value
    (tmp_path / "cases.jsonl").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(DatasetError) as caught:
        check(tmp_path / "cases.jsonl")
    said = str(caught.value).partition("line 1: ")[2]
    assert f"cases.jsonl, line 17: {said}\n" in PAGE
