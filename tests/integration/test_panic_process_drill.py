"""A drill: the real process on the paper broker, with how long each step took."""

from libs.trading.journal import Journal
from libs.trading.panic.report import JOURNAL_NAME
from tests.integration.test_panic_process import House, house

__all__ = ["house"]
DRILL = ("-m", "libs.trading.drill")


def test_a_drill_says_how_long_each_step_took(house: House) -> None:
    process = house.start(program=DRILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = said.splitlines()
    assert '"state": "FLAT"' in lines[0]
    steps = [line.split()[2] for line in lines[1:-2]]
    entries = Journal(house.state / JOURNAL_NAME).entries()
    assert steps == [entry.action for entry in entries[:-1]]
    assert entries[0].result["reason"] == "drill"
    assert entries[0].result["ttl_minutes"] == 0
    assert house.fake.positions == {}


def test_a_drill_leaves_other_brokers_alone(house: House) -> None:
    house.extra |= {"BROKER": "alpaca", "ALPACA_KEY_ID": "k", "ALPACA_SECRET_KEY": "s"}
    process = house.start(program=DRILL)
    said, error = process.communicate(timeout=60)
    assert (process.returncode, said) == (2, "")
    assert "BROKER=alpaca" in error
    assert list(house.state.iterdir()) == []


def test_a_drill_of_a_broker_that_is_not_known(house: House) -> None:
    house.extra["BROKER"] = "ibkr"
    process = house.start(program=DRILL)
    assert process.communicate(timeout=60)[1].startswith("BROKER='ibkr'")
    assert process.returncode == 2
