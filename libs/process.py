"""How a process of ours lives: one event loop, a graceful end, and one clear line when it cannot start."""

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

import structlog
import uvicorn
import uvloop
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp

from libs import telemetry, tracing
from libs.http_door import Door, DoorSettings
from libs.http_heads import BoundedHeads
from libs.settings import load
from libs.tracing.requests import layer
from libs.tracing.start import start

GRACE_S = 8.0
DRAIN_S = 3
CUT_S = 0.5
UNTAKEN_MS = 30_000
MOST_MESSAGE_BYTES = 1_048_576
"""The longest message of a websocket that is read."""
COLLECT_AFTER = 20_000
"""Objects more than before at which garbage is looked for."""
OUR_PACKAGES = ("libs.", "services.", "tools.")

log = structlog.get_logger(__name__)

Main = Callable[[asyncio.Event], Awaitable[None]]


class PortTakenError(Exception):
    """Another program listens on the port this process was given."""


def explain(error: BaseException) -> str | None:
    """The line for a person, or None where the failure is a bug and deserves its traceback.

    Exceptions defined in this code base name the setting, file or place at fault, so their message is enough; the same
    goes for what the operating system or the database refuses.
    """
    if isinstance(error, BaseExceptionGroup):
        lines = [explain(inner) for inner in error.exceptions]  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType,reportUnknownMemberType]
        known = [line for line in lines if line is not None]
        return "\n".join(known) if len(known) == len(lines) else None
    if type(error).__module__.startswith(OUR_PACKAGES):
        return str(error)
    if isinstance(error, OSError | SQLAlchemyError):
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


async def _supervise(main: Main) -> None:
    """Run `main`, tell it to stop on SIGTERM or SIGINT, and cancel it when it does not, or at a second signal."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def run_main() -> None:
        await main(stop)

    task = loop.create_task(run_main())

    def end_now(why: str) -> None:
        if task.cancel():
            log.warning(why, grace_s=GRACE_S)

    def on_signal() -> None:
        if stop.is_set():
            end_now("cancelled_by_second_signal")
            return
        log.info("stopping")
        stop.set()
        loop.call_later(GRACE_S, end_now, "grace_ran_out")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await task
    except asyncio.CancelledError:
        if not stop.is_set():
            raise


def run(main: Main, *, service: str) -> None:
    """Run `main(stop)` on uvloop until it returns; SIGTERM and SIGINT set `stop`, then it has `GRACE_S` to end.

    A failure that a person can mend (a setting, a file, a taken port, a database out of reach) becomes one line on
    stderr and exit code 2; anything else is logged with its traceback and exits 1.
    """
    telemetry.configure(service)
    try:
        start(service)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_supervise(main))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        line = explain(error)
        if line is None:
            log.exception("crashed")
            sys.exit(1)
        sys.stderr.write(f"{service}: {telemetry.mask_text(line)}\n")
        sys.exit(2)
    finally:
        tracing.close()


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to `run`."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _listen(host: str, port: int, variable: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Every connection inherits it: a peer that takes nothing for so long is gone, and what it was sent is let go of.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNTAKEN_MS)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        setting = f", or set {variable} to a free port" if variable else ", or choose another port"
        raise PortTakenError(
            f"cannot listen on {host}:{port} ({error.strerror}): stop what listens there "
            f"(`ss -ltnp 'sport = :{port}'` shows it){setting}"
        ) from error
    listener.setblocking(False)
    return listener


def _calm_the_collector() -> None:
    """Leave everything made at the start out of garbage collection, and look at the rest less often.

    What a request makes is freed when it ends; looking for cycles after every 700 objects more would take an eighth of
    the time of a busy process.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 20)


async def serve(app: ASGIApp, *, host: str, port: int, stop: asyncio.Event, variable: str = "") -> None:
    """Serve `app` inside the running loop until `stop` is set; answers under way get `DRAIN_S` seconds to finish.

    What is not finished then is cancelled and has `CUT_S` to say so to its caller. ASGI's lifespan events are not sent:
    what an app stands on is opened before it serves. `variable` names the setting the port came from. Raises
    `PortTakenError` when the address cannot be had. There is no access log: request lines carry query strings, and the
    metrics count what matters. Nothing reaches `app` but through `libs.http_door`, which knows
    the names in `ALLOWED_HOSTS`.
    """
    door = Door(layer(app), listening=host, names=load(DoorSettings).names)
    listener = _listen(host, port, variable)
    config = uvicorn.Config(
        door,
        http=BoundedHeads,
        ws_max_size=MOST_MESSAGE_BYTES,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=DRAIN_S,
        proxy_headers=False,  # nobody reads a client's address, and the layer costs on each request
        reset_contextvars=True,  # else a pipelined request starts with what the one before it set, such as its trace
    )
    server = _Server(config)
    log.info("listening", host=host, port=listener.getsockname()[1])

    async def end() -> None:
        await stop.wait()
        server.should_exit = True

    ender = asyncio.create_task(end())
    _calm_the_collector()
    try:
        await server.serve(sockets=[listener])
        if cut := set(server.server_state.tasks):
            await asyncio.wait(cut, timeout=CUT_S)
    finally:
        ender.cancel()
        listener.close()
