"""What the launch scripts ask that a shell cannot: standard library only, since it runs under vLLM's own Python.

    probe.py address HOST PORT        may the server listen there? prints `loopback` or `open`
    probe.py model FOLDER             is the model's folder whole?
    probe.py flags < HELP             the flags in the help text of `vllm serve`, one a line
    probe.py ready URL MODEL PID S    wait up to S seconds until a completion came back, while process PID lives
    probe.py parse FLAGS...           let the real parser of the installed vLLM read a command line

0: yes. 2: no, with the reason on stderr. The key is read from VLLM_API_KEY, never from the command line.
"""

import errno
import importlib
import ipaddress
import json
import os
import re
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

PARSER_MODULES = (
    "vllm.entrypoints.common.cli_args",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.openai.cli_args",
)
OPTION_LINE = re.compile(r"^ {1,6}(-\S.*)$")  # prose is indented further, or not at all
OPTION = re.compile(r"(?<![\w-])--[A-Za-z0-9][A-Za-z0-9_-]*")
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
ASK_EVERY_S = 2.0
ASK_TIMEOUT_S = 60.0
STOP_WITHIN_S = 30.0


class No(Exception):
    """The answer is no; the message says why."""


def address(host: str, port: int) -> str:
    """Whether a server can listen there; `loopback` when nobody else can reach it."""
    try:
        number = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise No(f"{host!r} is not an IP address") from None
    family = socket.AF_INET6 if number.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((str(number), port))
        except OSError as error:
            taken = " Another program listens there." if error.errno == errno.EADDRINUSE else ""
            raise No(f"cannot listen on {host} port {port}: {error.strerror}.{taken}") from None
    return "loopback" if number.is_loopback else "open"


def model(folder: str) -> str:
    """Whether a folder holds a whole model: a configuration, and every file of weights that its index names."""
    place = Path(folder)
    if not place.is_dir():
        raise No(f"{folder} is not a folder")
    if not any((place / name).is_file() for name in ("config.json", "params.json")):
        raise No(f"{folder} holds no config.json: not a model's folder")
    if not any(file.stat().st_size for pattern in WEIGHTS for file in place.glob(pattern)):
        raise No(f"{folder} holds no weights ({', '.join(WEIGHTS)})")
    for index in place.glob("*.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
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


def alive(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in {"Z", "X"}


def completed(url: str, name: str) -> str:
    """Ask for one short completion; empty when it came, else why not."""
    body = {"model": name, "messages": [{"role": "user", "content": "Say OK"}], "max_tokens": 1, "temperature": 0}
    headers = {"Content-Type": "application/json"}
    if os.environ.get("VLLM_API_KEY"):
        headers["Authorization"] = f"Bearer {os.environ['VLLM_API_KEY']}"
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no business on this way
    try:
        with opener.open(request, timeout=ASK_TIMEOUT_S) as answer:
            content = json.load(answer)
    except urllib.error.HTTPError as error:
        return f"it answered {error.code} to a completion"
    except (OSError, ValueError) as error:
        return f"no answer yet ({error})"
    return "" if isinstance(content, dict) and content.get("choices") else "its answer holds no completion"


def ready(url: str, name: str, pid: int, patience_s: float) -> str:
    """Wait for a completion. When time is up the server is ended: one that cannot answer must not look as if it ran."""
    began = time.monotonic()
    while True:
        reason = completed(url, name)
        if not reason:
            break
        if not alive(pid):
            raise No("the server ended before it answered")
        if time.monotonic() - began > patience_s:
            end(pid)
            raise No(f"no completion within {patience_s:g} s: {reason}; the server was ended")
        time.sleep(ASK_EVERY_S)
    tell_systemd()
    return f"ready: {name} answered a completion at {url}/v1 after {time.monotonic() - began:.0f} s"


def end(pid: int) -> None:
    """End the server: politely, then not."""
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + STOP_WITHIN_S
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.2)
    if alive(pid):
        os.kill(pid, signal.SIGKILL)


def tell_systemd() -> None:
    """Say to systemd that the service is up, where it asked (Type=notify)."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
        speaker.sendto(b"READY=1", "\0" + place[1:] if place.startswith("@") else place)


def parse(arguments: "list[str]") -> str:
    """Read a command line with the parser of the installed vLLM; argparse itself says what is wrong and ends with 2."""
    found = None
    for name in PARSER_MODULES:
        try:
            found = importlib.import_module(name)
            break
        except ModuleNotFoundError:
            continue
    if found is None:
        raise No("no vLLM parser is installed here")
    parser = found.make_arg_parser(importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser())
    read = parser.parse_args(arguments)
    return json.dumps({name: value for name, value in vars(read).items() if isinstance(value, (str, int, float, list))})


QUESTIONS = {
    "address": lambda host, port: address(host, int(port)),
    "model": model,
    "flags": lambda: flags(sys.stdin.read()),
    "ready": lambda url, name, pid, patience_s: ready(url, name, int(pid), float(patience_s)),
    "parse": lambda *given: parse(list(given)),
}


def main(arguments: "list[str]") -> int:
    """Answer one question."""
    try:
        print(QUESTIONS[arguments[0]](*arguments[1:]), flush=True)
    except No as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
