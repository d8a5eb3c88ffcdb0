"""`python -m services.sidecar`: the older interface as a process."""

import asyncio

from libs.http_app import Edge
from libs.process import run, serve
from libs.service_settings import ListenSettings
from libs.settings import load
from services.sidecar.app import open_app
from services.sidecar.settings import SidecarSettings, check_reach


async def main(stop: asyncio.Event) -> None:
    """Serve until told to stop. Nothing is opened where everybody on the network could use it."""
    listen, settings = load(ListenSettings), load(SidecarSettings)
    check_reach(settings, listen.api_host)
    async with open_app(listen, settings) as app:
        edge = Edge(app, max_body_bytes=settings.sidecar_max_body_bytes)
        await serve(edge, host=listen.api_host, port=settings.sidecar_port, stop=stop, variable="SIDECAR_PORT")


if __name__ == "__main__":
    run(main, service="sidecar")
