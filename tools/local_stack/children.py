"""Child processes that cannot outlive their parent.

Linux delivers a signal of our choice to a child when the thread that started it dies, even by `kill -9`. Start
children from the main thread only.
"""

import ctypes
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def dies_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """A hook for a new child that asks the kernel for `death_signal` when its parent dies."""

    def hook() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, int(death_signal))

    return hook


def spawn(
    command: Sequence[str | Path],
    *,
    log: IO[bytes],
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    cwd: Path | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start a child in a process group of its own, its output going to `log`.

    The group keeps a terminal's Ctrl-C from reaching the children before the supervisor has decided their order.
    """
    return subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=None if env is None else dict(env),
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        cwd=cwd,
        process_group=0,
        preexec_fn=dies_with_parent(death_signal),  # noqa: PLW1509 - no threads run when children are started
    )


def end(child: subprocess.Popen[bytes], *, with_signal: signal.Signals, grace_s: float) -> None:
    """Ask a child to stop, and kill it when it has not within `grace_s` seconds."""
    if child.poll() is None:
        child.send_signal(with_signal)
        wait_or_kill(child, grace_s=grace_s)


def wait_or_kill(child: subprocess.Popen[bytes], *, grace_s: float) -> None:
    """Wait for a child that was asked to stop, and kill it when it has not within `grace_s` seconds."""
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
