"""What the console shows and what is pressed there: reports made beforehand, and a row for every press."""

from pathlib import Path

from alembic import op

revision = "7"
down_revision = "6"


def upgrade() -> None:
    """Create the tables of the console from the SQL beside this file."""
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    for statement in sql.split("\n--;;\n"):
        op.get_bind().exec_driver_sql(statement)
