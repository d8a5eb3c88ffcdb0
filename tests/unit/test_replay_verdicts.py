"""The gate over its golden set: every verdict as stored, and whatever is changed is named."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from libs.replay.cases import read_cases
from libs.trading import gate
from libs.trading.limits import Terms
from libs.trading.reasons import Kind, Reason
from libs.trading.types import Mode, Order, StoredDecision
from services.api.strategist.desk.record import Asked, columns_of, decision_copy, seen_by
from services.api.strategist.desk.verdicts import told_of
from tests.data.golden.make_verdicts import gate_cases
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


def test_the_golden_set_is_what_its_maker_makes() -> None:
    assert cases() == list(gate_cases(list(read_cases(GOLDEN / "fake_engine.jsonl"))))


def test_the_golden_set_holds_every_mode_and_both_verdicts() -> None:
    verdicts = [case.verdict for case in cases()]
    assert {verdict.mode for verdict in verdicts} == {"enforce", "shadow", "disabled"}
    assert {(verdict.verdict, verdict.would_have) for verdict in verdicts} == {
        ("allow", "allow"),
        ("allow", "deny"),
        ("deny", "deny"),
    }


def test_the_golden_set_holds_every_reason_that_the_gate_can_give() -> None:
    said = {reason for case in cases() for reason in case.verdict.reasons}
    in_its_place = {Reason.GATE_TIMEOUT, Reason.GATE_ERROR}  # where the gate had no time, or failed
    missing = set(Reason) - said - in_its_place
    assert not missing, f"no golden verdict says {', '.join(sorted(missing))}; add a case to make_verdicts.py"


def test_every_reason_is_told_apart_from_the_others() -> None:
    """Each stands alone somewhere, so that it decides there."""
    alone = {case.verdict.reasons[0] for case in cases() if len(case.verdict.reasons) == 1}
    together = {reason for reason in Reason if reason.startswith("UNKNOWN_")}
    assert set(Reason) - alone - together == {Reason.GATE_TIMEOUT, Reason.GATE_ERROR}


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


@pytest.mark.parametrize("forgotten", [reason for reason in Reason if reason.kind is Kind.POLICY])
def test_a_gate_that_forgets_a_policy_reason_is_named(forgotten: Reason, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gate.policy_reasons

    def forgetful(order: Order, decision: StoredDecision | None, terms: Terms) -> Iterator[Reason]:
        return (reason for reason in whole(order, decision, terms) if reason is not forgotten)

    monkeypatch.setattr(gate, "policy_reasons", forgetful)
    found = checked(FILE)
    assert found.first is not None
    assert forgotten in found.first or "verdict" in found.first


NOT_AN_ENTRYS = {Reason.NOT_REDUCING, Reason.GATE_TIMEOUT, Reason.GATE_ERROR}


@pytest.mark.parametrize(
    "forgotten", [reason for reason in Reason if reason.kind is Kind.HARD and reason not in NOT_AN_ENTRYS]
)
def test_a_gate_that_forgets_a_hard_reason_is_named(forgotten: Reason, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gate.hard_reasons

    def forgetful(order: Order, situation: gate.Situation) -> Iterator[Reason]:
        return (reason for reason in whole(order, situation) if reason is not forgotten)

    monkeypatch.setattr(gate, "hard_reasons", forgetful)
    assert checked(FILE).different > 0


def always(*_: object) -> bool:
    return True


def never(*_: object) -> bool:
    return False


def no_refusal(mode: Mode, _refusal: Reason | None) -> gate.Verdict:
    return gate.Verdict("allow", "allow", mode, (Reason.ALLOW,))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("may_reduce", always), ("may_reduce", never), ("mismatched", never), ("of_reduction", no_refusal)],
)
def test_a_gate_that_judges_otherwise_is_named(name: str, wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, name, wrong)
    assert checked(FILE).different > 0


def test_the_record_of_every_verdict_leads_to_it_again() -> None:
    for case in cases():
        if case.decision is not None and case.decision.ticker != case.order.ticker:
            continue  # the desk looks decisions up by the order's ticker, and a record holds that one alone
        found = recorded(record_of(case), case)
        assert (found.checked, found.first) == (0 if case.order.reduce_only else 1, None)


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


def test_a_file_without_verdicts_is_no_pass(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(tmp_path / "verdicts.jsonl", [])
    assert main([str(path), str(GOLDEN / "fake_engine.jsonl")]) == 2
    said = capsys.readouterr()
    assert "0 verdicts: nothing to check" in said.out
    assert "no verdict was checked" in said.err


def test_a_file_that_cannot_be_read_names_the_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(tmp_path / "verdicts.jsonl", cases()[:1])
    path.write_text(path.read_text(encoding="utf-8") + "{}\n", encoding="utf-8")
    with pytest.raises(VerdictFileError, match="line 2"):
        list(read_verdicts(path))
    assert main([str(path)]) == 2
    assert "line 2" in capsys.readouterr().err
