"""What services.analytics reads from the environment beyond what its parts read themselves."""

from pydantic import Field

from libs.settings import Settings


class AnalyticsSettings(Settings):
    """Limits of the analytics."""

    analytics_summary_wait_s: float = Field(
        default=2, gt=0, le=30, allow_inf_nan=False, description="Most seconds /analytics/recent waits for a summary."
    )
