"""pip-audit over a lock, with its silences told apart: a service that cannot be asked is no clean bill."""

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT_S = 300.0
OUT_OF_REACH = (
    "vulnerabilities: the service that knows of them cannot be reached from this machine, so nothing is known of any "
    "package; run `make audit` again where it can be reached"
)
_NO_CONNECTION = re.compile(r"ConnectionError|ConnectTimeout|ProxyError|Could not connect|network may be blocking")

Run = Callable[[list[str]], "subprocess.CompletedProcess[str]"]


@dataclass(slots=True)
class Found:
    """Of one lock: known vulnerabilities, and packages that nobody could be asked about, with the reason.

    `away` says that the service did not answer, or knew of not one package: a network that keeps it from us may say
    either. That is no fault of the packages.
    """

    vulnerable: list[str] = field(default_factory=list[str])
    unasked: list[str] = field(default_factory=list[str])
    asked: int = 0
    away: bool = False


def run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def look_up(lock: Path, pip_audit: Path, run: Run = run) -> Found:
    """What pip-audit's service says of the pins of a lock."""
    options = ["--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    try:
        done = run([str(pip_audit), *options, "--requirement", str(lock)])
    except (OSError, subprocess.TimeoutExpired) as error:
        return Found(unasked=[f"all of {lock.name}: {type(error).__name__}"])
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return Found(unasked=[f"all of {lock.name}: {last[:200]}"], away=_NO_CONNECTION.search(done.stderr) is not None)
    found = Found()
    for package in packages:
        if "skip_reason" in package:
            found.unasked.append(f"{package['name']}: {package['skip_reason']}")
            continue
        found.asked += 1
        for known in package["vulns"]:
            mended = ", ".join(known["fix_versions"]) or "no version yet"
            found.vulnerable.append(f"{package['name']} {package['version']}: {known['id']}, mended in {mended}")
    found.away = bool(packages) and not found.asked
    return found
