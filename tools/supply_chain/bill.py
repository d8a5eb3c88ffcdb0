"""The bill of materials of what we ship, in CycloneDX, from the lock: with hashes and licences, the same every time."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tools.supply_chain.licences import installed, named


def write_bill(lock: Path, cyclonedx: Path, *, environment: Path, out: Path) -> int:
    """Write the bill of a lock, which the library validates; returns how many components it has.

    Raises `subprocess.CalledProcessError` or `OSError` where the tool fails.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [str(cyclonedx), "requirements", "--output-reproducible", "--of", "JSON", "-o", str(out), str(lock)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    bill: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    packages = installed(environment)
    for component in bill["components"]:
        component.pop("description", None)  # the line of the lock, hashes and all
        package = packages.get(component["name"].lower())
        if package is not None and (licences := named(package.metadata)):
            component["licenses"] = [{"license": {"name": licence}} for licence in licences]
    out.write_text(json.dumps(bill, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return len(bill["components"])
