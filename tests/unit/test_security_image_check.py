"""`make image-check` believes a container only what its health check has said, on a stand-in for Docker."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = """#!/bin/sh
echo "$*" >> "$TOLD"
case "$*" in
  inspect*-good) echo "$GOOD" ;;
  inspect*-bad) echo "$BAD" ;;
esac
"""


def check(folder: Path, *, good: str, bad: str) -> tuple[int, list[str]]:
    """The exit code where Docker says so of the two containers, and what Docker was told."""
    for name, script in (("docker", DOCKER), ("sleep", "#!/bin/sh\n")):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    told = folder / "told"
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}", "TOLD": str(told), "GOOD": good, "BAD": bad
    }  # fmt: skip
    command = ["bash", str(ROOT / "tools" / "supply_chain" / "image_check.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode, told.read_text().splitlines()


def test_one_that_is_healthy_and_one_that_is_not_are_as_it_should_be(tmp_path: Path) -> None:
    code, told = check(tmp_path, good="running healthy", bad="running unhealthy")
    assert code == 0
    good, bad = (line for line in told if line.startswith("run "))
    assert "--health-start-period" in good
    assert "--health-start-period" not in bad  # in it, no failure counts
    assert told[-1].startswith("rm -f ")


@pytest.mark.parametrize("good", ["running starting", "running unhealthy", "exited unhealthy"])
def test_an_image_that_does_not_become_healthy_is_wrong(tmp_path: Path, good: str) -> None:
    assert check(tmp_path, good=good, bad="running unhealthy")[0] == 1


@pytest.mark.parametrize("bad", ["running starting", "running healthy", "exited starting", "exited unhealthy"])
def test_a_check_that_was_not_seen_to_fail_is_wrong(tmp_path: Path, bad: str) -> None:
    assert check(tmp_path, good="running healthy", bad=bad)[0] == 1
