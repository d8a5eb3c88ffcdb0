"""What enforcing would have changed: entries the gate judged, what became of them, and what that says about shadow."""

from libs.shadow.answer import USUAL_PAST, Shadow, shadow_of

__all__ = ["USUAL_PAST", "Shadow", "shadow_of"]
