"""`python -m libs.db migrate`: bring the database to the newest schema."""

import sys
from pathlib import Path

from alembic import command
from alembic.config import Config


def migrate() -> None:
    """Run every migration that has not run yet."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, "head")


if __name__ == "__main__":
    if sys.argv[1:] != ["migrate"]:
        sys.exit("usage: python -m libs.db migrate")
    migrate()
