"""Forecasts with their judgement, every model call, and what is ingested."""

from pathlib import Path

from alembic import op
from sqlalchemy import text

revision = "1"
down_revision = None


def upgrade() -> None:
    """Create everything of the first release from the SQL beside this file."""
    op.get_bind().execute(text("select 1"))
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    for statement in sql.split("\n--;;\n"):
        op.get_bind().exec_driver_sql(statement)
