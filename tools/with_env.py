"""`python -m tools.with_env [--database[-if-there]] MODULE [ARGUMENT …]`: run a module with `.env` filled in, in this
one process.

It reads `.env` as the other targets of `make` do, the shell's own variables first, without starting Python twice: a
panic exit must not wait for that, and it goes on where `.env` cannot be read. With `--database`, `DATABASE_URL` comes
from the stack that runs here where nothing else names one; with `--database-if-there` the module runs without one too.
"""

import os
import runpy
import sys
from pathlib import Path

DATABASE = "--database"
DATABASE_IF_THERE = "--database-if-there"


def read_env_file(path: Path) -> None:
    """Fill the environment from a file of settings. Trouble is told and never stops what is to be run."""
    if not path.exists():
        return
    try:
        from dotenv import load_dotenv  # here, since a broken install must not keep the module from running

        load_dotenv(path)
    except Exception as error:  # noqa: BLE001 - whatever it is, what was asked for matters more
        sys.stderr.write(f"{path} was not read ({type(error).__name__}: {error}); the shell's variables hold\n")


def fill_in_database(*, needed: bool) -> None:
    """Name the embedded database of the stack that runs here, unless another one is named."""
    if os.environ.get("DATABASE_URL") or os.environ.get("DATABASE_URL_FILE"):
        return
    from tools.local_stack.embedded import nobody_answers, not_running  # here, since a panic exit needs none of it

    state = Path(os.environ.get("LOCAL_STATE") or ".local")
    url_file = state / "database.url"
    url = url_file.read_text(encoding="utf-8").strip() if url_file.exists() else ""
    if url and not nobody_answers(url):
        os.environ["DATABASE_URL"] = url
    elif needed:
        sys.exit(not_running(state))


def main() -> None:
    """Become the module, with what is left of the command line."""
    words = sys.argv[1:]
    wants_database = words[:1] in ([DATABASE], [DATABASE_IF_THERE])
    module, *arguments = words[wants_database:]
    read_env_file(Path(".env"))
    if wants_database:
        fill_in_database(needed=words[0] == DATABASE)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
