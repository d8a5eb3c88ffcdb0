"""A driver's library and a clock that jumps, compiled for one test."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent


class FakeDriver:
    """`libnvidia-ml.so.1` in a folder, and the readings that it gives, one for each time it is asked."""

    def __init__(self, folder: Path, *readings: object, old: bool = False) -> None:
        self.file = folder / "readings"
        self.file.write_text("".join(f"{reading}\n" for reading in readings))
        _compile(HERE / "nvml.c", folder / "libnvidia-ml.so.1", *(["-DOLD"] if old else []))
        self.environment: Mapping[str, str] = {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML_FILE": str(self.file)}

    @property
    def asked(self) -> int:
        """How often it was started."""
        read = self.file.with_suffix(".read")
        return len(read.read_bytes()) if read.exists() else 0


def jumping_clock(folder: Path) -> Mapping[str, str]:
    """The environment of a process whose time of day jumps whenever it looks."""
    library = folder / "clock.so"
    _compile(HERE / "nvml_clock.c", library, "-ldl")
    return {"LD_PRELOAD": str(library)}


def unkillable(folder: Path, *, refused: bool = False) -> Mapping[str, str]:
    """The environment of a process whose kills reach nobody: nothing happens, or they are refused."""
    library = folder / "unkillable.so"
    _compile(HERE / "nvml_unkillable.c", library)
    return {"LD_PRELOAD": str(library), **({"FAKE_KILL_REFUSED": "1"} if refused else {})}


def _compile(source: Path, library: Path, *more: str) -> None:
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, *more], check=True)
