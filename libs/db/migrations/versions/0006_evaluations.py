"""What a version is promoted by: offline evaluations, their results, and their work while it is spread over workers."""

from pathlib import Path

from alembic import op

revision = "6"
down_revision = "5"


def upgrade() -> None:
    """Create the tables of evaluations from the SQL beside this file."""
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    for statement in sql.split("\n--;;\n"):
        op.get_bind().exec_driver_sql(statement)
