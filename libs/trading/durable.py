"""Files that are there after a power cut. Standard library only."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make a file's coming or going last through a power cut. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Write a file and sync it, not yet its folder. Raises `OSError`, `FileExistsError` unless it may `replace` one."""
    with path.open("wb" if replace else "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
