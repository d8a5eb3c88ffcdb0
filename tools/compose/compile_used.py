"""Compiles what programs import, for an image: `python -m tools.compose.compile_used MODULE …`.

The file systems of the containers are read-only, so what is not compiled here is compiled in memory at every start,
the standard library too, which the official images carry without. Everything would weigh three times as much. A file
says nothing of the time of its source and is never compared with it: in an image neither changes.
"""

import sys
from importlib import import_module
from importlib.util import cache_from_source
from py_compile import PycInvalidationMode
from py_compile import compile as compile_file


def sources() -> set[str]:
    """The source files of all that was imported so far."""
    files = (getattr(module, "__file__", None) for module in tuple(sys.modules.values()))
    return {file for file in files if file is not None and file.endswith(".py")}


def main(names: list[str]) -> None:
    """Import the modules and compile what that took, into `PYTHONPYCACHEPREFIX` where it is set."""
    for name in names:
        import_module(name)
    for file in sorted(sources()):
        target = cache_from_source(file)
        compile_file(file, target, doraise=True, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
    print(f"compiled {len(sources())} files")


if __name__ == "__main__":
    main(sys.argv[1:])
