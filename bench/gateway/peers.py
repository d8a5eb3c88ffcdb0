"""The peers, each installed once into an environment of its own under `.bench/`: nothing of the project sees them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from bench.gateway.machine import CACHE

ROUTER = ("vllm-router==0.1.17",)
LITELLM = ("litellm[proxy]==1.65.0", "openai==1.68.2", "pydantic==2.10.6", "httpx==0.28.1", "aiohttp==3.11.18")
"""Of March 2025, a year before the two releases that stole credentials (1.82.7, 1.82.8), with libraries of its days."""
PROFILER = ("py-spy==0.4.1",)
MOST_INSTALL_S = 600


class NotMeasured(Exception):
    """A candidate or tool cannot be had here; the message says why."""


def environment(name: str, packages: tuple[str, ...]) -> Path:
    """The folder of programs of a virtual environment with `packages`. Raises `NotMeasured`."""
    folder = CACHE / re.sub(r"[^a-z0-9.]+", "-", packages[0])
    finished = folder / "finished"
    if finished.exists() and finished.read_text(encoding="utf-8") == "\n".join(packages):
        return folder / "bin"
    print(f"  installing {name} into {folder.relative_to(CACHE.parent)} …", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(folder)])
    run([str(folder / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", "--no-input", *packages])
    finished.write_text("\n".join(packages), encoding="utf-8")
    return folder / "bin"


def nginx() -> Path:
    """nginx on the path, or unpacked from Debian's package without installing it. Raises `NotMeasured`."""
    installed = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if installed is not None:
        return Path(installed)
    program = CACHE / "nginx" / "usr" / "sbin" / "nginx"
    if not program.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise NotMeasured("nginx is neither installed nor to be had without apt-get")
        folder = CACHE / "nginx"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        run(["apt-get", "download", "nginx"], cwd=folder)
        for package in sorted(folder.glob("nginx_*.deb")):
            run(["dpkg-deb", "-x", str(package), str(folder)])
    run([str(program), "-v"])
    return program


def run(command: list[str], *, cwd: Path | None = None) -> None:
    """Run one step of an installation. Raises `NotMeasured` with the end of what it said."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=MOST_INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotMeasured(str(error)) from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotMeasured(f"{Path(command[0]).name}: {said[-1] if said else done.returncode}")
