"""One container through the Docker Engine's API: run a command in it, and restart it."""

import asyncio
import re
import ssl
import struct
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from services.watchdog.commands import MOST_BYTES, first_line

HEADER = struct.Struct(">BxxxI")
STDOUT, STDERR = 1, 2
VERSIONS = re.compile(r"\d+\.\d+")
CALL_S = 10.0
LOOK_AGAIN_S = (1.0, 3.0, 9.0)
LEAST_ID = 12
"""Characters of an id as Docker shows it; fewer may be the beginning of a stranger's."""


class DockerError(Exception):
    """The engine cannot be reached, refused, or took too long; the message is for a person."""


def unframed(raw: bytes) -> tuple[str, str]:
    """Standard output and errors out of Docker's stream of frames. Raises `DockerError` for anything else.

    Half a number is another number, so a stream that was cut short is refused too.
    """
    texts = {STDOUT: b"", STDERR: b""}
    while raw:
        if len(raw) < HEADER.size or raw[0] not in texts or raw[1:4] != b"\0\0\0":
            raise DockerError("the Docker engine answered with something else than its stream")
        kind, size = HEADER.unpack_from(raw)
        piece = raw[HEADER.size : HEADER.size + size]
        if len(piece) < size:
            raise DockerError("the Docker engine's answer was cut short")
        texts[kind] += piece
        raw = raw[HEADER.size + size :]
    return texts[STDOUT].decode("utf-8", "replace"), texts[STDERR].decode("utf-8", "replace")


class Container:
    """One container of one engine. `open_container` makes it."""

    def __init__(self, client: httpx.AsyncClient, name: str, *, host: str) -> None:
        self._client = client
        self._name = name
        self._host = host
        self._under_way: str | None = None
        self._version: str | None = None

    async def output_of(self, command: Sequence[str], *, within_s: float) -> str:
        """What a command in the container prints. Raises `DockerError`, also for more than `MOST_BYTES`.

        Docker cannot end a command that hangs. So that they do not pile up, no other is begun until it ended.
        """
        try:
            async with asyncio.timeout(within_s):
                return await self._run(command)
        except TimeoutError as error:
            raise DockerError(f"{command[0]} in {self._name} took longer than {within_s:g} s") from error

    async def life(self) -> str:
        """What names this life of the container: another one after each start.

        Raises `DockerError`, also where it stands still.
        """
        found = await self._inspect()
        state: dict[str, Any] = found.get("State") or {}
        if not state.get("Running"):
            raise DockerError(f"container {self._name} is not running")
        return f"{found.get('Id', '')} {state.get('StartedAt', '')}"

    async def restart(self, *, grace_s: int, within_s: float) -> None:
        """Restart the container: it has `grace_s` to end by itself, and `within_s` more to be up again.

        A failure may leave it stopped, or Docker may still be at it: so it is looked at a few times more, and started
        where it stands still. Raises `DockerError`.
        """
        before = (await self._state()).get("StartedAt")
        try:
            await self._post(f"{self._path}/restart?t={grace_s}", within_s=grace_s + within_s)
            return
        except DockerError as error:
            trouble = error
        for pause in LOOK_AGAIN_S:
            await asyncio.sleep(pause)
            try:
                state = await self._state()
                if state.get("Running") and state.get("StartedAt") != before:
                    return
                if not state.get("Running"):
                    await self._post(f"{self._path}/start", within_s=within_s)
                    return
            except DockerError as error:
                trouble = error
        raise trouble

    @property
    def _path(self) -> str:
        return f"/containers/{quote(self._name, safe='')}"

    async def _run(self, command: Sequence[str]) -> str:
        if self._under_way is not None and await self._still_runs(self._under_way):
            raise DockerError(f"the last {command[0]} in {self._name} still runs")
        wanted = {"AttachStdout": True, "AttachStderr": True, "Tty": False, "Cmd": list(command)}
        made = await self._json("POST", f"{self._path}/exec", wanted)
        self._under_way = exec_id = str(made.get("Id", ""))
        raw = await self._stream(f"/exec/{quote(exec_id, safe='')}/start")
        output, errors = unframed(raw)
        code = (await self._json("GET", f"/exec/{quote(exec_id, safe='')}/json")).get("ExitCode")
        if code != 0:
            raise DockerError(f"{command[0]} in {self._name} ended with code {code}: {first_line(errors or output)}")
        self._under_way = None
        return output

    async def _still_runs(self, exec_id: str) -> bool:
        answer = await self._call("GET", f"/exec/{quote(exec_id, safe='')}/json")
        if answer.status_code == HTTPStatus.NOT_FOUND:  # gone with the container that it ran in
            return False
        return bool(self._read(answer).get("Running"))

    async def _state(self) -> dict[str, Any]:
        return (await self._inspect()).get("State") or {}

    async def _inspect(self) -> dict[str, Any]:
        """The container, and no other: Docker takes the beginning of an id for a name that it does not know."""
        found = await self._json("GET", f"{self._path}/json")
        own_id, own_name = str(found.get("Id", "")), str(found.get("Name", "")).removeprefix("/")
        by_id = len(self._name) >= LEAST_ID and own_id.startswith(self._name)
        if self._name != own_name and not by_id:
            raise DockerError(f"no container is named {self._name}: Docker took it for the id of {own_name}")
        return found

    async def _post(self, path: str, *, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                answer = await self._call("POST", path, within_s=None)
        except TimeoutError as error:
            raise DockerError(f"the Docker engine at {self._host} took longer than {within_s:g} s") from error
        self._refuse_errors(answer)

    async def _json(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        return self._read(await self._call(method, path, body))

    async def _call(
        self, method: str, path: str, body: object = None, *, within_s: float | None = CALL_S
    ) -> httpx.Response:
        try:
            where = await self._versioned(path)
            return await self._client.request(method, where, json=body, timeout=within_s)
        except (httpx.HTTPError, OSError) as error:
            raise self._unreachable(error) from error

    async def _versioned(self, path: str) -> str:
        """The path under the newest version of the API that the engine speaks; what is asked here is in all of them."""
        if self._version is None:
            newest = (await self._client.get("/_ping", timeout=CALL_S)).headers.get("Api-Version", "")
            self._version = f"/v{newest}" if VERSIONS.fullmatch(newest) else ""
        return f"{self._version}{path}"

    async def _stream(self, path: str) -> bytes:
        """What comes until the engine closes the connection; the caller bounds the time."""
        raw = b""
        wanted = {"Detach": False, "Tty": False}
        try:
            where = await self._versioned(path)
            async with self._client.stream("POST", where, json=wanted, timeout=None) as answer:
                if answer.is_error:
                    await answer.aread()
                self._refuse_errors(answer)
                async for chunk in answer.aiter_raw():
                    raw += chunk
                    if len(raw) > MOST_BYTES:
                        raise DockerError(f"a command in {self._name} printed more than {MOST_BYTES} bytes")
        except (httpx.HTTPError, OSError) as error:
            raise self._unreachable(error) from error
        return raw

    def _unreachable(self, error: Exception) -> DockerError:
        self._version = None  # what answers there next may be another engine
        return DockerError(f"the Docker engine at {self._host} does not answer: {type(error).__name__} {error}".strip())

    def _refuse_errors(self, answer: httpx.Response) -> None:
        if answer.is_error:
            try:
                said = str(answer.json()["message"])
            except (ValueError, KeyError, TypeError):
                said = answer.text
            raise DockerError(f"the Docker engine at {self._host} answers {answer.status_code}: {first_line(said)}")

    def _read(self, answer: httpx.Response) -> dict[str, Any]:
        self._refuse_errors(answer)
        try:
            read: Any = answer.json()
        except ValueError as error:
            raise DockerError(f"the Docker engine at {self._host} answers with something else than JSON") from error
        if not isinstance(read, dict):
            raise DockerError(f"the Docker engine at {self._host} answers with something else than an object")
        return read  # pyright: ignore[reportUnknownVariableType]


@asynccontextmanager
async def open_container(name: str, *, host: str) -> AsyncGenerator[Container, None]:
    """The container `name` of the engine at `host`, which is unix:///path or tcp://host:port. Connects when used."""
    parts = urlsplit(host)
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the engine is spoken to in the clear; no certificates are loaded
    socket = parts.path if parts.scheme == "unix" else None
    transport = httpx.AsyncHTTPTransport(verify=nobody, uds=socket)
    address = "http://docker" if parts.scheme == "unix" else f"http://{parts.netloc}"
    async with httpx.AsyncClient(transport=transport, base_url=address, trust_env=False) as client:
        yield Container(client, name, host=host)
