"""What an operator may turn, kept in Postgres: the latest unexpired row of a name wins, by the database's clock."""

from libs.switches.reading import (
    CAUTIOUS,
    Standing,
    Switch,
    order_gate_disabled,
    shadow_mode,
    standing,
    switch,
)
from libs.switches.settings import SwitchSettings
from libs.switches.turning import LONGEST_MINUTES, USUAL_MINUTES, SwitchError, record_environment, turn

__all__ = [
    "CAUTIOUS",
    "LONGEST_MINUTES",
    "USUAL_MINUTES",
    "Standing",
    "Switch",
    "SwitchError",
    "SwitchSettings",
    "order_gate_disabled",
    "record_environment",
    "shadow_mode",
    "standing",
    "switch",
    "turn",
]
