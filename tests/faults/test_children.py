"""A child of the local stack cannot outlive its parent, however the parent ends."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.acceptance.stack import ROOT, eventually, gone

PARENT = """
import sys, time
from tools.local_stack.children import spawn
child = spawn([sys.executable, "-c", "import time; time.sleep(600)"], log=open(sys.argv[1], "ab"))
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent(number: signal.Signals, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))
    assert child.is_running()
    parent.send_signal(number)
    parent.wait(10)
    eventually(lambda: gone([child]), what="the child ends", within_s=10)
