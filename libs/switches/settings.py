"""The switches as the environment sets them."""

from pydantic import Field

from libs.settings import Flag, Settings
from libs.switches.reading import CAUTIOUS


class SwitchSettings(Settings):
    """What the environment says about the switches; it speaks only when its word changes."""

    order_gate_disabled: Flag = Field(
        default=CAUTIOUS["ORDER_GATE_DISABLED"],
        description="Emergency: the policy counts as allow, logged per order; ends by itself after 240 minutes.",
    )
    llm_shadow_mode: Flag = Field(
        default=CAUTIOUS["LLM_SHADOW_MODE"], description="Verdicts are logged and the policy does not gate."
    )
