"""From opinion to money: verdicts and their chain, authorisations, orders, fills, positions, halts, alerts."""

from pathlib import Path

from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Create the tables of the gate from the SQL beside this file."""
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    for statement in sql.split("\n--;;\n"):
        op.get_bind().exec_driver_sql(statement)
