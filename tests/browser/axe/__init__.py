"""axe-core, installed once under `.bench/` from the lock beside this file, and what it says of a page.

The lock holds hashes and names no host; `npm install --package-lock-only --omit-lockfile-registry-resolved` in its
folder makes it anew. npm is the one of the wheel that the development tools pin.
"""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

from bench.promptfoo.installing import npm

HERE = Path(__file__).parent
CACHE = HERE.parents[2] / ".bench" / "axe"
SCRIPT = CACHE / "node_modules" / "axe-core" / "axe.min.js"
GRAVE = {"serious", "critical"}


@cache
def script() -> str:
    """The source of axe-core, as the lock has it."""
    lock = (HERE / "package-lock.json").read_text(encoding="utf-8")
    finished = CACHE / "finished"
    if not finished.exists() or finished.read_text(encoding="utf-8") != lock:
        CACHE.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, CACHE / name)
        npm("ci", "--prefer-offline", folder=CACHE)
        finished.write_text(lock, encoding="utf-8")
    return SCRIPT.read_text(encoding="utf-8")


def findings(page: Any) -> list[str]:
    """What axe finds grave on a page: which rule, where, and why. That it looked at all is asserted here."""
    page.evaluate(script())
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 5
    return [
        f"{each['impact']} {each['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
        for each in found["violations"]
        if each["impact"] in GRAVE
        for node in each["nodes"][:3]
    ]
