"""Traces of an order as the api's process makes them: the request, its verdict, its way to the broker."""

import pytest
from pydantic import SecretStr

from libs.db.engine import DatabaseSettings, create_engine
from libs.keys import ALL_SCOPES
from tests.fakes.collector import FakeSpan, fake_collector
from tests.faults.gateway_process import caller, eventually, gateway_before
from tests.faults.orders_process import Trading
from tests.integration.desk_cases import turn
from tests.integration.paper_server import paper_broker
from tools.local_stack.postgres import EmbeddedPostgres

pytestmark = pytest.mark.xdist_group("tracing")


async def test_an_order_is_one_trace_with_its_verdict_and_its_submission(postgres: EmbeddedPostgres) -> None:
    with fake_collector() as collector:
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        callers = [caller("desk", scopes=set(ALL_SCOPES))]
        async with (
            paper_broker() as paper,
            gateway_before(postgres, [], callers, BROKER="paper", PAPER_URL=paper.url, **settings) as api,
        ):
            address = DatabaseSettings(database_url=SecretStr(postgres.url(api.database)))
            engine = create_engine(address, application="test", pool_size=1)
            house = Trading(api, paper, engine)
            await turn(engine, "LLM_SHADOW_MODE", False)
            await house.fresh()
            entered = await house.order()
            assert entered.status_code == 200, entered.text
            await house.until_held()
            left = await house.exit("10")
            assert left.status_code == 200, left.text

            async def look() -> dict[str, FakeSpan]:
                found = {span.name: span for span in list(collector.spans)}
                return found if "broker close" in found and len(collector.named("POST /strategist/orders")) == 2 else {}

            spans = await eventually(look, what="the spans of an entry and an exit")
            await engine.dispose()
    requests = {span.id for span in collector.named("POST /strategist/orders")}
    # The exit's verdict is put on record later, by nobody's request.
    [gate] = [span for span in collector.named("gate") if span.parent]
    submit = spans["broker submit"]
    assert gate.parent == submit.parent
    assert gate.parent in requests
    assert spans["broker close"].parent in requests - {gate.parent}
    assert gate.attributes["lexi.verdict_id"] == entered.json()["verdict_id"]
    assert gate.attributes["lexi.verdict"] == "allow"
    assert submit.attributes["lexi.order_id"] == entered.json()["order"]["id"]
