"""A machine to launch models on: fake GPUs, a model's folder, and a vLLM faked at the wire (its command line and HTTP).

The fake prints the recorded flags of a real version as its help, and then serves: it answers /health at once and a
completion only after some refusals, as a real one that still warms up.
"""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
RECORDED = ROOT / "tests/data/vllm"
KEY = "a-key-of-the-desk"
MODULE = "-m vllm.entrypoints.openai.api_server"
GPUS = "".join(f"{number}, GPU-aaaa{number}, 24576, 24000, 0\n" for number in range(4))
"""As nvidia-smi lists them: number, identity, MiB in all, free, and in use; the rest is the driver's."""
REFUSED, LATER = 2, 75

NVIDIA_SMI = """#!/bin/sh
cat {file}
"""
PYTHON = """#!/bin/bash
case "$*" in
  *sysconfig*) echo {folder}/scripts ;;
  "-m vllm.entrypoints.openai.api_server "*) shift 2; exec {folder}/serve "$@" ;;
  *) exec {real} "$@" ;;
esac
"""
VLLM = """#!/bin/bash
[[ $1 == serve ]] || exit 2
shift
exec {folder}/serve "$@"
"""
SERVE = """#!/bin/bash
if [[ $1 == --help=all ]]; then
  [[ ! -e {folder}/old-help ]] || exit 2
  cat {folder}/help; exit
elif [[ $1 == --help ]]; then
  cat {folder}/help; exit
fi
exec {real} {fake} {folder} "$@"
"""
FAKE_SERVER = ROOT / "tests/fakes/vllm_server.py"


def help_of(flags: str) -> str:
    """A help text that lists flags as vLLM's does."""
    entries = "".join(f"  {flag} VALUE\n{' ' * 24}What it does; see --not-a-flag.\n" for flag in flags.split())
    return f"usage: vllm serve [model_tag] [options]\n\nServes.\n\noptions:\n  -h, --help\n{entries}"


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


@dataclass
class Machine:
    """One machine. `flags` are what its vLLM knows; files under `folder` decide how the fake server behaves."""

    folder: Path
    flags: str = field(default_factory=lambda: (RECORDED / "flags-0.33.0.txt").read_text(encoding="utf-8"))
    gpus: str = GPUS
    command_works: bool = True

    def __post_init__(self) -> None:
        (self.folder / "scripts").mkdir()
        model = self.folder / "model"
        model.mkdir()
        (model / "config.json").write_text("{}", encoding="utf-8")
        (model / "model.safetensors").write_bytes(b"weights")
        self.lay()

    def lay(self) -> None:
        """Write the programs anew, after a change."""
        folder = self.folder
        (folder / "help").write_text(help_of(self.flags), encoding="utf-8")
        (folder / "gpus").write_text(self.gpus, encoding="utf-8")
        places = {"folder": folder, "real": sys.executable, "fake": FAKE_SERVER}
        self.program("nvidia-smi", NVIDIA_SMI.format(file=folder / "gpus"))
        self.program("python", PYTHON.format(**places))
        self.program("serve", SERVE.format(**places))
        broken = "#!/bin/sh\necho 'PackageNotFoundError: vllm' >&2\nexit 1\n"
        self.program("scripts/vllm", VLLM.format(**places) if self.command_works else broken)

    def program(self, name: str, text: str) -> None:
        """Write one executable."""
        file = self.folder / name
        file.write_text(text, encoding="utf-8")
        file.chmod(0o755)

    @property
    def model(self) -> Path:
        """The model's folder."""
        return self.folder / "model"

    def environment(self, prefix: str = "LEXI", **more: str) -> dict[str, str]:
        """What the script is given: all it needs, changed by `more`; an empty value takes a variable away."""
        given = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "LEXI_PYTHON": str(self.folder / "python"),
            f"{prefix}_MODEL_PATH": str(self.model),
            # Lexi may be running on the port of the contract.
            f"{prefix}_PORT": free_port(),
            "LLM_API_KEY": KEY,
            **more,
        }
        return {name: value for name, value in given.items() if value}

    def run(self, *arguments: str, model: str = "lexi", **more: str) -> subprocess.CompletedProcess[str]:
        """Run a launch script to its end."""
        return subprocess.run(
            [SCRIPTS / f"launch_{model}.sh", *arguments],
            env=self.environment(model.upper(), **more),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def dry_run(self, model: str = "lexi", **more: str) -> tuple[str, str]:
        """The command line it would start, and what it said beside."""
        done = self.run("--dry-run", model=model, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), done.stderr

    def refusal(self, *arguments: str, model: str = "lexi", code: int = REFUSED, **more: str) -> str:
        """What it says when it will not start; nothing was started."""
        done = self.run(*arguments, model=model, **more)
        assert done.returncode == code, (done.stdout, done.stderr)
        assert not (self.folder / "started").exists()
        return done.stderr.strip()
