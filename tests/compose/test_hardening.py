"""What the containers may do, as the engine and the kernel say it, and that no secret is where others look."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.compose.stack import ComposeStack

pytestmark = pytest.mark.timeout(2400)

OURS = ("api", "forecast", "jobs", "analytics", "paper")
LOOPBACK = {"127.0.0.1", "::1"}
HOLDS_THE_SOCKET = "vram-watchdog"
"""Restarts a container through the engine, so its user may read the engine's socket."""
SETUP = "setup"
"""Root with three capabilities, for files of the host keep their owner; it has no network and ends at once."""
SETUP_MAY = {"CHOWN", "DAC_OVERRIDE", "FOWNER"}


def weaknesses(service: str, said: dict[str, Any]) -> Iterator[str]:
    """What a container has that it should not have, as `docker inspect` tells."""
    host, config = said["HostConfig"], said["Config"]
    more: list[str] = host["CapAdd"] or []
    added = {each.removeprefix("CAP_") for each in more}
    if not host["ReadonlyRootfs"]:
        yield "its root file system is writable"
    if service != SETUP and config["User"].split(":")[0] in {"", "0", "root"}:
        yield f"its user is {config['User'] or 'root'}"
    if host["CapDrop"] != ["ALL"] or added != (SETUP_MAY if service == SETUP else set()):
        yield f"capabilities: dropped {host['CapDrop']}, added {host['CapAdd']}"
    if not {"no-new-privileges:true", "no-new-privileges"}.intersection(host["SecurityOpt"] or []):
        yield f"it may gain privileges: {host['SecurityOpt']}"
    if not host["Memory"]:
        yield "no memory limit"
    if service == SETUP and host["NetworkMode"] != "none":
        yield "root with a network"
    yield from _shares(said)


def _shares(said: dict[str, Any]) -> Iterator[str]:
    """What it has of the host."""
    host = said["HostConfig"]
    if host["Privileged"] or "host" in {host["PidMode"], host["NetworkMode"], host["IpcMode"]}:
        yield "it shares the host's namespaces"
    published: dict[str, list[dict[str, str]]] = host["PortBindings"] or {}
    for port, bindings in published.items():
        yield from (f"{port} is published on {each['HostIp']}" for each in bindings if each["HostIp"] not in LOOPBACK)
    if any(mount["Source"].endswith("docker.sock") for mount in said["Mounts"]):
        yield "it holds the engine's socket"


def test_every_container_is_as_locked_up_as_promised(stack: ComposeStack) -> None:
    found = {service: list(weaknesses(service, stack.inspect(service))) for service in stack.services()}
    assert set(OURS) | {"postgres", "migrate", SETUP} <= set(found)
    assert {service: weak for service, weak in found.items() if weak} == {}


@pytest.mark.parametrize("service", OURS)
def test_the_kernel_says_the_same_from_inside(stack: ComposeStack, service: str) -> None:
    shown = stack.compose("exec", "-T", service, "cat", "/proc/1/status")
    status = dict(line.split(":\t", 1) for line in shown.splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    for place in ("/app/written", "/usr/written", "/written"):
        done = stack.run("docker", "compose", "exec", "-T", service, "python", "-c", f"open({place!r}, 'w')")
        assert "Read-only file system" in done.stderr
    done = stack.run(
        "docker", "compose", "exec", "-T", service, "python", "-c", "open('/state/t', 'w'); open('/tmp/t', 'w')"
    )
    assert done.returncode == 0, done.stderr


def written_weaknesses(name: str, service: dict[str, Any]) -> Iterator[str]:
    """The same of a service as it is written down, also of profiles that are not started here."""
    yield from (each for each in ("read_only", "cap_drop", "security_opt", "mem_limit") if not service.get(each))
    if name != SETUP and str(service.get("user", "0")).split(":")[0] in {"0", "root"}:
        yield "root"
    for port in service.get("ports", []):
        if port.get("host_ip") not in LOOPBACK:
            yield f"published on {port.get('host_ip')}"
    sources = [str(volume.get("source", "")) for volume in service.get("volumes", [])]
    if name != HOLDS_THE_SOCKET and any(source.endswith("docker.sock") for source in sources):
        yield "the engine's socket"


def test_services_of_every_profile_are_written_down_as_locked_up(stack: ComposeStack) -> None:
    services = json.loads(stack.compose("--profile", "*", "config", "--format", "json"))["services"]
    found = {name: list(written_weaknesses(name, service)) for name, service in services.items()}
    assert {name: weak for name, weak in found.items() if weak} == {}
    assert {"llm-sidecar", HOLDS_THE_SOCKET, "paper", "tools", "prometheus", "grafana", "lexi"} <= set(services)


def test_no_secret_is_in_what_the_engine_tells_or_in_an_image_or_a_log(stack: ComposeStack) -> None:
    values = {path.name: path.read_text().strip() for path in (stack.folder / "secrets").iterdir() if path.is_file()}
    assert {"postgres_password", "operator.key", "llm_api_key"} <= set(values)
    told = [json.dumps(stack.inspect(service)) for service in stack.services()]
    for image in set(stack.compose("--profile", "tools", "config", "--images").split()):
        told.append(stack.run("docker", "history", "--no-trunc", image, check=True).stdout)
        told.append(stack.run("docker", "image", "inspect", image, check=True).stdout)
    told.append(stack.logs(lines=100_000))
    found = [name for name, value in values.items() if len(value) > 8 and any(value in each for each in told)]
    assert found == []


def test_secrets_of_the_host_are_its_owners_alone(stack: ComposeStack) -> None:
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (stack.folder / "secrets").iterdir()}
    assert modes["operator.key"] == "0o600"
    before = {path.name: path.read_bytes() for path in (stack.folder / "secrets").iterdir() if path.is_file()}
    stack.run("make", "secrets", check=True)
    after = {path.name: path.read_bytes() for path in (stack.folder / "secrets").iterdir() if path.is_file()}
    assert after == before
