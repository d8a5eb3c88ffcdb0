"""The gate over its golden set: every verdict as stored, and whatever is changed is named."""

import json
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from libs.trading import gate
from libs.trading.reasons import Reason
from services.api.strategist.desk.record import Asked, columns_of, decision_copy, seen_by
from services.api.strategist.desk.verdicts import told_of
from tests.data.golden.make_verdicts import SITUATIONS
from tests.unit.judgement_cases import AS_OF, CALL_ID, ROOT
from tools.replay_check import (
    CASES,
    GateCase,
    VerdictFileError,
    Verdicts,
    check_file,
    check_record,
    main,
    read_verdicts,
)

GOLDEN = ROOT / "tests" / "data" / "golden"
FILE = GOLDEN / "verdicts.jsonl"


def cases() -> list[GateCase]:
    return list(read_verdicts(FILE))


def write(path: Path, made: list[GateCase]) -> Path:
    path.write_text("".join(f"{CASES.dump_json(one).decode()}\n" for one in made), encoding="utf-8")
    return path


def checked(path: Path) -> Verdicts:
    found = Verdicts()
    check_file(path, found)
    return found


def record_of(case: GateCase, **changes: Any) -> dict[str, Any]:
    """A verdict as its payload in the database holds it."""
    told = told_of(case.verdict, decision=case.decision, verdict_id=CALL_ID)
    columns = columns_of(Asked(case.order), told, decision=case.decision, seq=1, now=AS_OF, first=True)
    decision = None if case.decision is None else decision_copy(case.decision)
    return json.loads(json.dumps({**columns, "decision": decision, **seen_by(case.situation, None), **changes}))


def recorded(record: Mapping[str, Any], case: GateCase) -> Verdicts:
    found = Verdicts()
    check_record(record, found, terms=case.situation.terms)
    return found


def test_every_verdict_comes_out_as_stored() -> None:
    found = checked(FILE)
    assert (found.first, found.checked) == (None, len(cases()))
    assert found.checked >= 3 * len(SITUATIONS)


def test_the_golden_set_holds_every_mode_and_both_verdicts() -> None:
    verdicts = [case.verdict for case in cases()]
    assert {verdict.mode for verdict in verdicts} == {"enforce", "shadow", "disabled"}
    assert {(verdict.verdict, verdict.would_have) for verdict in verdicts} == {
        ("allow", "allow"),
        ("allow", "deny"),
        ("deny", "deny"),
    }
    said = {reason for verdict in verdicts for reason in verdict.reasons}
    assert {
        *(Reason.ALLOW, Reason.KILL_SWITCH, Reason.MISMATCH, Reason.STALE_DECISION, Reason.INVALID_DECISION),
        *(Reason.MODEL_UNAVAILABLE, Reason.POLICY_DENY, Reason.RULE_DENY, Reason.HALTED, Reason.RECONCILING),
        *(Reason.LIMIT_QTY, Reason.PRICE_COLLAR),
    } <= said


def test_a_verdict_that_was_turned_is_named(tmp_path: Path) -> None:
    made = cases()
    made[4] = replace(made[4], verdict=replace(made[4].verdict, reasons=(Reason.ALLOW, Reason.HALTED)))
    found = checked(write(tmp_path / "verdicts.jsonl", made))
    assert (found.different, found.checked) == (1, len(made))
    assert found.first is not None
    assert found.first.startswith(f"verdicts.jsonl, line 5 (order {made[4].order.client_order_id}")
    assert "reasons: stored ['ALLOW', 'HALTED'], now " in found.first


def test_a_decision_that_was_turned_is_named(tmp_path: Path) -> None:
    made = cases()
    number = next(number for number, case in enumerate(made) if Reason.POLICY_DENY in case.verdict.reasons)
    decision = made[number].decision
    assert decision is not None
    made[number] = replace(made[number], decision=replace(decision, allow=True, reasons=()))
    assert checked(write(tmp_path / "verdicts.jsonl", made)).different == 1


def test_a_gate_that_forgets_a_rule_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(_order: object, _decision: object) -> bool:
        return False

    monkeypatch.setattr(gate, "mismatched", forgetful)
    found = checked(FILE)
    assert found.different > 0
    assert found.first is not None
    assert "MISMATCH" in found.first


def test_the_record_of_every_verdict_leads_to_it_again() -> None:
    for case in cases():
        found = recorded(record_of(case), case)
        assert (found.checked, found.first) == (1, None)


@pytest.mark.parametrize(
    ("name", "value"), [("verdict", "allow"), ("would_have", "allow"), ("reasons", ["ALLOW"]), ("mode", "shadow")]
)
def test_a_record_that_was_changed_is_named(name: str, value: Any) -> None:
    case = next(
        case for case in cases() if Reason.POLICY_DENY in case.verdict.reasons and case.verdict.mode == "enforce"
    )
    found = recorded(record_of(case, **{name: value}), case)
    assert found.first is not None
    assert found.first.startswith(f"verdict {CALL_ID} (order {case.order.client_order_id}, {case.order.ticker}): ")
    assert name in found.first or name == "mode"


def test_an_order_for_another_horizon_stays_a_mismatch() -> None:
    case = next(case for case in cases() if case.verdict.allowed and case.verdict.mode == "enforce")
    other = replace(case, order=replace(case.order, horizon="5d"))
    judged = replace(other, verdict=gate.judge(other.order, other.decision, other.situation))
    assert Reason.MISMATCH in judged.verdict.reasons
    assert recorded(record_of(judged), judged).first is None


@pytest.mark.parametrize("changes", [{"reduce_only": True}, {"exit": {}}, {"first": False}])
def test_what_no_policy_had_a_say_in_is_counted_apart(changes: dict[str, Any]) -> None:
    case = cases()[0]
    found = recorded(record_of(case, **changes), case)
    assert (found.checked, found.without_policy) == (0, 1)
    assert "1 exits and repeated orders left out" in str(found)


def test_the_command_checks_both_sets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(path) for path in sorted(GOLDEN.glob("*.jsonl"))]) == 0
    assert capsys.readouterr().out.count("all as stored") == 2
    made = cases()[:3]
    limits = replace(made[0].situation.limits, max_order_qty=Decimal(0))
    made[0] = replace(made[0], situation=replace(made[0].situation, limits=limits))
    assert main([str(write(tmp_path / "verdicts_edited.jsonl", made))]) == 1
    assert "LIMIT_QTY" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_names_the_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(tmp_path / "verdicts.jsonl", cases()[:1])
    path.write_text(path.read_text(encoding="utf-8") + "{}\n", encoding="utf-8")
    with pytest.raises(VerdictFileError, match="line 2"):
        list(read_verdicts(path))
    assert main([str(path)]) == 2
    assert "line 2" in capsys.readouterr().err
