"""`python -m libs.db migrate`: bring the database to the newest schema."""

import sys
from pathlib import Path

from alembic import command
from alembic.config import Config

from libs.db.engine import DatabaseSettings
from libs.db.opening import place_of
from libs.process import explain
from libs.settings import SettingsError, load
from libs.telemetry import mask_text


def migrate() -> None:
    """Run every migration that has not run yet."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, "head")


def main(arguments: list[str]) -> None:
    """Migrate, or end with one line that names the setting or the place at fault."""
    if arguments != ["migrate"]:
        sys.exit("usage: python -m libs.db migrate")
    try:
        place = place_of(load(DatabaseSettings).database_url.get_secret_value())
    except SettingsError as error:
        sys.exit(str(error))
    try:
        migrate()
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        sys.exit(f"cannot migrate the database at {place} (DATABASE_URL): {mask_text(line)}")


if __name__ == "__main__":
    main(sys.argv[1:])
