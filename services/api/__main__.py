"""`python -m services.api`: the control plane as a process."""

import asyncio

from libs.http_app import Edge
from libs.process import run, serve
from libs.service_settings import ListenSettings
from libs.settings import load
from services.api.app import open_app
from services.api.settings import ApiSettings


async def main(stop: asyncio.Event) -> None:
    """Serve until told to stop."""
    listen, settings = load(ListenSettings), load(ApiSettings)
    async with open_app(listen, settings) as app:
        edge = Edge(app, max_body_bytes=settings.api_max_body_bytes)
        await serve(edge, host=listen.api_host, port=listen.api_port, stop=stop, variable="API_PORT")


if __name__ == "__main__":
    run(main, service="api")
