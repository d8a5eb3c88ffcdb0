"""A migrated database on an embedded server, for the benches that need one."""

import os
import subprocess
import sys

from tools.local_stack.postgres import EmbeddedPostgres


def migrated(server: EmbeddedPostgres, name: str) -> str:
    """Create and migrate a database; returns its address."""
    server.ensure_database(name)
    url = server.url(name)
    subprocess.run([sys.executable, "-m", "libs.db", "migrate"], check=True, env=os.environ | {"DATABASE_URL": url})
    return url
