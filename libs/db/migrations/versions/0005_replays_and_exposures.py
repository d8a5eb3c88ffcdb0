"""What prompt changes are judged by: replays of stored decisions, and who was given which arm with what result."""

from pathlib import Path

from alembic import op

revision = "5"
down_revision = "4"


def upgrade() -> None:
    """Create the tables of replays and exposures from the SQL beside this file."""
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    for statement in sql.split("\n--;;\n"):
        op.get_bind().exec_driver_sql(statement)
