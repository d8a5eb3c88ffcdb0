"""`python -m services.api`: the gateway as a process, control plane and data plane."""

import asyncio

from libs.process import run, serve
from libs.service_settings import ListenSettings
from libs.settings import load
from services.api.app import open_app
from services.api.settings import ApiSettings
from services.api.strategist.stopping.cut_off import resume_first


async def main(stop: asyncio.Event) -> None:
    """Serve until told to stop. A panic exit that was cut off goes on first, also where the rest cannot start."""
    listen, settings = load(ListenSettings), load(ApiSettings)
    await resume_first(listen.local_state)
    async with open_app(listen, settings) as app:
        await serve(app, host=listen.api_host, port=listen.api_port, stop=stop, variable="API_PORT")


if __name__ == "__main__":
    run(main, service="api")
