"""What the launch scripts ask that a shell cannot: standard library only, since it runs under vLLM's own Python.

    probe.py address HOST PORT        may the server listen there? prints `loopback` or `open`
    probe.py model FOLDER             is the model's folder whole?
    probe.py flags < HELP             the flags in the help text of `vllm serve`, one a line

0: yes. 2: no, with the reason on stderr. 75: not now, for something that time can mend.
"""

import errno
import ipaddress
import json
import re
import socket
import sys
from pathlib import Path

OPTION_LINE = re.compile(r"^ {1,6}(-\S.*)$")  # prose is indented further, or not at all
OPTION = re.compile(r"(?<![\w-])--[A-Za-z0-9][A-Za-z0-9_-]*")
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


class No(Exception):
    """The answer is no; the message says why."""

    code = 2


class NotNow(No):
    """No, but time can mend it."""

    code = 75


PASSING = {
    errno.EADDRINUSE: " Another program listens there.",
    errno.EADDRNOTAVAIL: " This machine has no such address.",
}
"""Why an address cannot be had at present: a server that still ends, a network that is not up yet."""


def address(host: str, port: int) -> str:
    """Whether a server can listen there; `loopback` when nobody else can reach it, which is said in any case."""
    try:
        number = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise No(f"{host!r} is not an IP address") from None
    reach = "loopback" if number.is_loopback else "open"
    family = socket.AF_INET6 if number.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((str(number), port))
        except OSError as error:
            reason = f"cannot listen on {host} port {port}: {error.strerror}.{PASSING.get(error.errno, '')}"
            if error.errno not in PASSING:
                raise No(reason) from None
            print(reach, flush=True)
            raise NotNow(reason) from None
    return reach


def model(folder: str) -> str:
    """Whether a folder holds a whole model: a configuration, and every file of weights that its index names."""
    try:
        return whole(folder, Path(folder))
    except OSError as error:
        raise No(f"{error.filename or folder} cannot be read: {error.strerror}") from None


def whole(folder: str, place: Path) -> str:
    """The same, of a folder that can be read."""
    if not place.is_dir():
        raise No(f"{folder} is not a folder")
    if not any((place / name).is_file() for name in ("config.json", "params.json")):
        raise No(f"{folder} holds no config.json: not a model's folder")
    if not any(file.stat().st_size for pattern in WEIGHTS for file in place.glob(pattern)):
        raise No(f"{folder} holds no weights ({', '.join(WEIGHTS)})")
    for index in place.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        except (ValueError, AttributeError, TypeError):
            raise No(f"{index} cannot be read: it is no list of a model's files") from None
        missing = sorted(shard for shard in shards if not (place / shard).is_file())
        if missing:
            raise No(f"{folder} is not whole: {len(missing)} of {len(shards)} files are missing, {missing[0]} first")
    return "whole"


def flags(text: str) -> str:
    """The long flags a help text lists, in its usage or at the head of an entry; those its prose mentions are none."""
    found = set()
    usage = text.startswith("usage:")
    for line in text.splitlines():
        usage = usage and bool(line.strip())
        entry = OPTION_LINE.match(line)
        if usage:
            found.update(OPTION.findall(line))
        elif entry:
            # An entry's explanation follows on the same line, two blanks after its flags.
            found.update(OPTION.findall(re.split(r"  +", entry.group(1))[0]))
    return "\n".join(sorted(found))


QUESTIONS = {
    "address": lambda host, port: address(host, int(port)),
    "model": model,
    "flags": lambda: flags(sys.stdin.read()),
}


def main(arguments: "list[str]") -> int:
    """Answer one question."""
    try:
        print(QUESTIONS[arguments[0]](*arguments[1:]), flush=True)
    except No as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
