"""The queue of services.jobs: PgQueuer's tables."""

from pathlib import Path

from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Create the queue from the SQL beside this file."""
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    for statement in sql.split("\n--;;\n"):
        op.get_bind().exec_driver_sql(statement)
