"""`python -m services.watchdog.nvml 0,1`: the used memory of these cards through the driver's library, in MiB.

A process of its own for each reading: a driver that hangs can be killed and one that crashes takes nothing with it.
"""

import sys
from typing import Any, cast


def used_mib(gpu: str) -> float:
    """The memory in use on a card, named by index or UUID, as nvidia-smi counts it. Raises the library's errors."""
    import pynvml

    library = cast("Any", pynvml)
    handle = library.nvmlDeviceGetHandleByIndex(int(gpu)) if gpu.isdecimal() else library.nvmlDeviceGetHandleByUUID(gpu)
    try:
        # The first version counts what the driver keeps for itself as used; nvidia-smi does not.
        memory = library.nvmlDeviceGetMemoryInfo(handle, version=library.nvmlMemory_v2)
    except library.NVMLError_FunctionNotFound:
        memory = library.nvmlDeviceGetMemoryInfo(handle)
    return memory.used / 2**20


def main(gpus: str) -> int:
    """Print one line a card; where one cannot be read, say why and give 1."""
    import pynvml

    library = cast("Any", pynvml)
    try:
        library.nvmlInit()
        # So many digits say each byte.
        lines = [f"{used_mib(gpu):.20f}\n" for gpu in gpus.split(",")]
    except library.NVMLError as error:
        sys.stderr.write(f"the driver's library answers: {error}\n")
        return 1
    sys.stdout.write("".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
