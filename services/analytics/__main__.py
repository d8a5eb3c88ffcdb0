"""`python -m services.analytics`: the analytics as a process."""

import asyncio

from libs.http_app import Edge
from libs.process import run, serve
from libs.service_settings import ListenSettings
from libs.settings import load
from services.analytics.app import open_app

MAX_BODY_BYTES = 65_536  # its routes take no bodies


async def main(stop: asyncio.Event) -> None:
    """Serve until told to stop."""
    listen = load(ListenSettings)
    async with open_app(listen) as app:
        edge = Edge(app, max_body_bytes=MAX_BODY_BYTES)
        await serve(edge, host=listen.api_host, port=listen.analytics_port, stop=stop, variable="ANALYTICS_PORT")


if __name__ == "__main__":
    run(main, service="analytics")
