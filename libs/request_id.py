"""The id of an HTTP request: the caller's own where it is one, else a new one."""

import re

from starlette.datastructures import Headers
from uuid_utils import uuid7

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id_of(headers: Headers) -> str:
    """The caller's `X-Request-Id` where it is a sane token, else a new one."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else str(uuid7())
