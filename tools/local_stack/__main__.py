"""`make run`: a real Postgres, a real small model, and every service, from one command."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from libs.keys import KeyFileError, ensure_operator_key
from libs.llm.errors import LLMError
from libs.settings import SettingsError, load
from libs.telemetry import mask_text
from libs.trading.broker.errors import BrokerConfigError
from tools.local_stack import banner
from tools.local_stack.children import dies_with_parent
from tools.local_stack.plan import (
    Program,
    StackSettings,
    environment,
    environment_of,
    model_server,
    services,
    strategy,
)
from tools.local_stack.postgres import EmbeddedPostgres, PostgresError
from tools.local_stack.preflight import check_configuration
from tools.local_stack.strategy_key import ensure_strategy_key
from tools.local_stack.supervise import StackError, Supervised, claim, require_free_port, stop_all

DATABASE = "lexi"
POSTGRES_REST_S = 5.0


class Stopped(Exception):
    """SIGINT or SIGTERM arrived."""


def stop_on_signals() -> None:
    """Turn SIGINT, SIGTERM and SIGHUP into one exception, once: a second one does not interrupt the clean-up."""

    def stop(number: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, stop)
    # `make` is our parent: when it is killed, we are told to stop too.
    dies_with_parent(signal.SIGTERM)()


def say(line: str) -> None:
    """Print one line of progress."""
    print(line, flush=True)


def note(log_path: Path, line: str) -> None:
    """Keep a line with its time, for whoever was not looking at the terminal."""
    with log_path.open("a", encoding="utf-8") as log:
        log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {mask_text(line)}\n")


def teller(log_path: Path) -> Callable[[str], None]:
    """A `say` that keeps what it said."""

    def tell(line: str) -> None:
        say(line)
        note(log_path, line)

    return tell


class Stack:
    """Everything that was started, and how to end it."""

    def __init__(self, settings: StackSettings) -> None:
        self.settings = settings
        self.state = settings.local_state.resolve()
        self.logs = self.state / "logs"
        self.postgres: EmbeddedPostgres | None = None
        self.processes: list[Supervised] = []
        self.model: list[Supervised] = []
        self.log_path = self.logs / "stack.log"
        self.tell = teller(self.log_path)

    def start(self) -> None:
        """Start everything in order; return when all of it is ready."""
        model = model_server(self.settings)
        for service in (*((model,) if model else ()), *services(self.settings)):
            require_free_port(service)
        database_url = self._start_database()
        env = environment(self.settings, database_url)
        if model is not None:
            self.tell("starting the embedded model (SmolLM2-135M) …")
            self.model = [self._supervise(model, env)]
        self.tell("migrating the database …")
        migrated = subprocess.run(
            [sys.executable, "-m", "libs.db", "migrate"], env=dict(env), capture_output=True, text=True, check=False
        )
        if migrated.returncode != 0:
            raise StackError(f"the migration failed:\n{migrated.stderr[-2000:].strip()}")
        for process in self.model:
            process.wait_until_ready()
        own = services(self.settings)
        self.tell(f"starting {', '.join(service.name for service in own)} …")
        self.processes = [self._supervise(service, env) for service in own]
        for process in self.processes:
            process.wait_until_ready()
        if self.settings.runs_strategy:
            note(self.log_path, f"starting {strategy().name} …")
            key = ensure_strategy_key(self.settings.keys_path, self.state)
            self.processes.append(self._supervise(strategy(), {**env, "STRATEGY_KEY": key}))

    def _supervise(self, program: Program, env: Mapping[str, str]) -> Supervised:
        told = environment_of(program, env, settings=self.settings)
        process = Supervised(program, env=told, logs=self.logs, report=self.tell)
        process.start()
        return process

    def _start_database(self) -> str:
        if self.settings.database_url is not None:
            return self.settings.database_url.get_secret_value()
        self.tell("starting the embedded Postgres …")
        self.postgres = EmbeddedPostgres(self.state / "postgres", log_path=self.logs / "postgres.log", report=self.tell)
        self.postgres.start()
        self.postgres.ensure_database(DATABASE)
        url = self.postgres.url(DATABASE)
        (self.state / "database.url").write_text(url + "\n", encoding="utf-8")
        return url

    def keep_alive(self) -> None:
        """Restart what has ended."""
        if self.postgres is not None and self.postgres.pid is None:
            self.tell(f"postgres ended; starting it again. Log: {self.postgres.log_path}")
            try:
                self.postgres.start()
            except PostgresError as error:
                self.tell(str(error))
                time.sleep(POSTGRES_REST_S)
        for process in (*self.model, *self.processes):
            process.keep_alive()

    def stop(self) -> None:
        """End everything: services first, then the model, then the database under them."""
        stop_all(self.processes)
        stop_all(self.model, grace_s=3)
        if self.postgres is not None:
            self.postgres.stop()


def main() -> int:
    """Run until a signal; 0 after a clean stop, 2 when the stack could not start."""
    stop_on_signals()
    stack: Stack | None = None
    tell = say
    try:
        settings = load(StackSettings)
        state = settings.local_state.resolve()
        (state / "logs").mkdir(parents=True, exist_ok=True)
        held = claim(state)
        check_configuration()
        stack = Stack(settings)
        tell = stack.tell
        note(stack.log_path, f"make run: process {os.getpid()}, state in {state}")
        started = time.monotonic()
        key = ensure_operator_key(settings.keys_path, state)
        stack.start()
        say(
            banner.started(
                settings, key_file=banner.shown(state / "operator.key"), key=key, took_s=time.monotonic() - started
            )
        )
        note(stack.log_path, f"everything is up after {time.monotonic() - started:.0f} s")
        watch = banner.FirstForecast(settings, key)
        while held:
            stack.keep_alive()
            watch.report(say)
            time.sleep(0.5)
    except Stopped as signalled:
        say("")
        tell(f"{signalled}: stopping …")
        return 0
    except (StackError, PostgresError, SettingsError, BrokerConfigError, KeyFileError, LLMError) as error:
        say("")
        tell(f"cannot start: {error}")
        return 2
    finally:
        if stack is not None:
            stack.stop()
            tell("everything is stopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
