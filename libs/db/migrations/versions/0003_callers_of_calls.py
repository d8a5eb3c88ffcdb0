"""Who asked: calls that came through the gateway know their key, their request and how they were answered."""

from pathlib import Path

from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """Widen the calls by the SQL beside this file."""
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    for statement in sql.split("\n--;;\n"):
        op.get_bind().exec_driver_sql(statement)
