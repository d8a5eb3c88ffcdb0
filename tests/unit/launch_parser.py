"""The help and the parser of a real vLLM, loaded once; run by its Python: `python launch_parser.py FOLDER_OF_PROBE`.

Prints `flags` and the flags that its help lists, then reads a command line, a JSON list, and prints what came of it.
"""

import argparse
import importlib
import json
import sys

PARSER_MODULES = (
    "vllm.entrypoints.common.cli_args",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.openai.cli_args",
)


def parser() -> "argparse.ArgumentParser":
    """The parser of the installed vLLM."""
    found = None
    for name in PARSER_MODULES:
        try:
            found = importlib.import_module(name)
            break
        except ModuleNotFoundError:
            continue
    if found is None:
        raise ModuleNotFoundError("no vLLM parser is installed here")
    return found.make_arg_parser(importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser())


def read_by(parser: "argparse.ArgumentParser", arguments: "list[str]") -> str:
    """What it reads from a command line; argparse itself says what is wrong and ends with 2."""
    read = parser.parse_args(arguments)
    return json.dumps({name: value for name, value in vars(read).items() if isinstance(value, (str, int, float, list))})


def main() -> None:
    """Tell the flags, then read one line."""
    sys.path.insert(0, sys.argv[1])
    probe = importlib.import_module("probe")
    known = parser()
    vars(known)["_search_keyword"] = "all"
    sys.stdout.write(" ".join(["flags", *probe.flags(known.format_help()).split()]) + "\n")
    sys.stdout.flush()
    sys.stdout.write(read_by(known, json.loads(sys.stdin.readline())) + "\n")


if __name__ == "__main__":
    main()
