"""`make psql`: the wheel's psql on the database of this stack, `DATABASE_URL` or the embedded one."""

import os
import sys
from urllib.parse import parse_qs, unquote, urlsplit

from libs.settings import SettingsError, load
from tools.local_stack.embedded import nobody_answers, not_running
from tools.local_stack.plan import StackSettings
from tools.local_stack.postgres import PostgresError, binaries


def main() -> None:
    """Become psql. Ends with one line when there is no database to talk to."""
    try:
        settings = load(StackSettings)
        psql = binaries() / "psql"
    except (SettingsError, PostgresError) as error:
        sys.exit(str(error))
    url_file = settings.local_state / "database.url"
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
    else:
        url = url_file.read_text(encoding="utf-8").strip() if url_file.exists() else ""
        if not url or nobody_answers(url):
            sys.exit(not_running(settings.local_state))
    # By the environment, so that a password does not stand in the list of processes.
    os.execve(psql, [str(psql), *sys.argv[1:]], os.environ | connection_variables(url))  # noqa: S606 - the wheel's own


def connection_variables(url: str) -> dict[str, str]:
    """libpq's variables for an address."""

    parts = urlsplit(url)
    given = {
        "PGHOST": parts.hostname or parse_qs(parts.query).get("host", [""])[0],
        "PGPORT": str(parts.port or ""),
        "PGUSER": unquote(parts.username or ""),
        "PGPASSWORD": unquote(parts.password or ""),
        "PGDATABASE": parts.path.strip("/"),
    }
    return {name: value for name, value in given.items() if value}


if __name__ == "__main__":
    main()
