"""`/health` in its three states, `/ready` and the record, from what the servers really do."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.process import explain
from libs.service_settings import ListenSettings
from libs.settings import load
from services.sidecar.app import open_app
from services.sidecar.lookout import PROBE
from services.sidecar.settings import SidecarSettings
from tests.fakes.engine import FakeEngine, Fault, Reply
from tests.integration.api_app import database_away, until
from tests.integration.sidecar_app import NOWHERE, VALID, entries_of, sidecar, two_models, write_upstreams
from tools.local_stack.postgres import EmbeddedPostgres

FIELDS = {"status", "hermes_loaded", "phi3_loaded", "phi3_model_file_exists", "device"}


async def health(http: httpx.AsyncClient) -> dict[str, Any]:
    answer = await http.get("/health")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    assert set(found) == FIELDS
    assert found["device"] in {"cuda", "cpu"}
    return found


async def ask(http: httpx.AsyncClient, path: str = "/generate/") -> Any:
    return (await http.post(path, json={"prompt": "Well?"})).json()


async def test_both_there_is_ok_and_costs_one_word_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with two_models() as (hermes, phi3), sidecar(monkeypatch, tmp_path, *entries_of(hermes, phi3)) as http:
        phi3.reply = hermes.reply = "OK"
        found = await asyncio.gather(*(health(http) for _ in range(20)))
        assert all(one["status"] == "ok" and one["hermes_loaded"] and one["phi3_loaded"] for one in found)
        assert all(one["phi3_model_file_exists"] for one in found)  # MICRO_LLM_MODEL_PATH is unset, and phi3 is there
        assert len(hermes.requests) == len(phi3.requests) == 1
        assert hermes.requests[0]["max_tokens"] == 4


async def test_a_completion_speaks_for_its_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with two_models() as (hermes, phi3), sidecar(monkeypatch, tmp_path, *entries_of(hermes, phi3)) as http:
        assert "generated_text" in await ask(http)
        assert (await health(http))["hermes_loaded"]
        assert len(hermes.requests) == 1


async def test_one_away_is_a_partial_error_and_both_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with two_models() as (hermes, phi3), sidecar(monkeypatch, tmp_path, *entries_of(hermes, phi3)) as http:
        assert (await health(http))["status"] == "ok"
        await phi3.stop()
        partial = await until(lambda: health(http), lambda found: not found["phi3_loaded"])
        assert (partial["status"], partial["hermes_loaded"]) == ("partial_error", True)
        assert not partial["phi3_model_file_exists"]
        ready = await until(lambda: http.get("/ready"), lambda answer: "yellow phi3: down" in answer.text)
        assert ready.status_code == 200
        await hermes.stop()
        error = await until(lambda: health(http), lambda found: not found["hermes_loaded"])
        assert error["status"] == "error"
        gone = await until(lambda: http.get("/ready"), lambda answer: answer.status_code == 503)
        assert "red    hermes: down" in gone.text
        assert "red    phi3: down" in gone.text
        await hermes.start()
        await phi3.start()
        assert (await until(lambda: health(http), lambda found: found["status"] == "ok"))["phi3_loaded"]


@pytest.mark.parametrize("fault", [Fault.STATUS, Fault.CLOSE, Fault.NOT_JSON, Fault.MALFORMED, Fault.SILENT])
async def test_a_server_that_is_green_and_answers_nothing_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Fault
) -> None:
    async with two_models() as (hermes, phi3), sidecar(monkeypatch, tmp_path, *entries_of(hermes, phi3)) as http:
        hermes.fault = fault
        found = await health(http)
        assert (found["status"], found["hermes_loaded"], found["phi3_loaded"]) == ("partial_error", False, True)


async def test_a_model_that_its_server_does_not_list_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with two_models() as (hermes, phi3):
        hermes.dialect, hermes.model = "llamacpp", "Another"  # this kind of server answers to any name
        named, other = entries_of(hermes, phi3)
        async with sidecar(monkeypatch, tmp_path, {**named, "dialect": "llamacpp"}, other) as http:
            assert not (await health(http))["hermes_loaded"]


async def test_a_failure_takes_its_model_back_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with two_models() as (hermes, phi3), sidecar(monkeypatch, tmp_path, *entries_of(hermes, phi3)) as http:
        assert (await health(http))["hermes_loaded"]
        hermes.fault = Fault.STATUS
        assert "error" in await ask(http)
        assert not (await health(http))["hermes_loaded"]


async def test_the_file_of_phi3_is_looked_at_where_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tmp_path / "phi3.onnx"
    async with two_models() as (hermes, phi3):
        entries = entries_of(hermes, phi3)
        async with sidecar(monkeypatch, tmp_path, *entries, MICRO_LLM_MODEL_PATH=str(model)) as http:
            assert not (await health(http))["phi3_model_file_exists"]
            model.write_bytes(b"")
            assert (await health(http))["phi3_model_file_exists"]


async def test_without_entries_lexi_answers_for_both_and_ready_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with (
        FakeEngine(reply=VALID) as lexi,
        two_models() as (hermes, phi3),
        sidecar(monkeypatch, tmp_path, LLM_BASE_URL=lexi.base_url) as http,
    ):
        assert await ask(http) == {"generated_text": VALID}
        assert await ask(http, "/generate/phi3/") == json.loads(VALID)
        ready = (await http.get("/ready")).text
        assert "yellow hermes: there is no upstream hermes: lexi answers for it" in ready
        assert "yellow phi3: there is no upstream phi3: lexi answers for it" in ready
        hermes.reply = "as Hermes"
        write_upstreams(tmp_path / "upstreams.yaml", *entries_of(hermes, phi3))  # read again while it runs
        await until(lambda: ask(http), lambda said: said == {"generated_text": "as Hermes"})
        assert "green  hermes\ngreen  phi3\n" in (await http.get("/ready")).text


async def test_the_window_of_lexi_bounds_it_where_it_is_shorter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with FakeEngine() as lexi:
        async with sidecar(monkeypatch, tmp_path, LLM_BASE_URL=lexi.base_url, LLM_MAX_TOKENS="2048") as http:
            body = {"prompt": "word " * 200, "max_length": 6000}
            assert "generated_text" in (await http.post("/generate/", json=body)).json()
        assert 1000 < lexi.requests[0]["max_tokens"] < 2048


async def test_every_call_is_a_row_and_a_repair_one_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str, engine: AsyncEngine
) -> None:
    async with two_models() as (hermes, phi3):
        entries = entries_of(hermes, phi3)
        async with sidecar(monkeypatch, tmp_path, *entries, DATABASE_URL=database_url) as http:
            assert "green  database" in (await http.get("/ready")).text
            await ask(http)
            phi3.reply = "garbage"
            failed = await ask(http, "/generate/phi3/")
        async with engine.connect() as connection:
            columns = "id, service, prompt_key, upstream, model, status, repaired"
            rows = (await connection.execute(text(f"select {columns} from llm_calls order by id"))).all()
            kept = (await connection.execute(text("select messages from llm_bodies order by id limit 1"))).scalar_one()
    assert [tuple(row)[1:] for row in rows] == [
        ("sidecar", "generate", "hermes", "Hermes", "ok", False),
        ("sidecar", "adjustment", "phi3", "Phi-3", "invalid", False),
        ("sidecar", "adjustment", "phi3", "Phi-3", "invalid", True),
    ]
    assert failed["call_id"] == str(rows[2].id)
    assert kept[0]["content"] == "Well?"


async def test_without_a_database_it_serves_and_the_calls_wait_in_the_spool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str, engine: AsyncEngine
) -> None:
    async with two_models() as (hermes, phi3):
        entries = entries_of(hermes, phi3)
        async with sidecar(monkeypatch, tmp_path, *entries) as http:
            assert "generated_text" in await ask(http)
            ready = await http.get("/ready")
            assert ready.status_code == 200
            assert "yellow database: no DATABASE_URL: calls wait in the spool" in ready.text
        assert list((tmp_path / "spool").glob("sidecar*.jsonl"))
        async with sidecar(monkeypatch, tmp_path, *entries, DATABASE_URL=database_url) as http:
            assert (await health(http))["hermes_loaded"]
        async with engine.connect() as connection:
            count = text("select count(*) from llm_calls where prompt_key = 'generate'")
            assert await connection.scalar(count) == 1


async def test_it_starts_and_serves_while_the_database_is_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, postgres: EmbeddedPostgres, database_url: str
) -> None:
    async with two_models() as (hermes, phi3):
        entries = entries_of(hermes, phi3)
        with database_away(postgres, database_url):
            async with sidecar(monkeypatch, tmp_path, *entries, DATABASE_URL=database_url) as http:
                assert "generated_text" in await ask(http)
                ready = await http.get("/ready")
                assert ready.status_code == 200
                assert "yellow database" in ready.text


async def test_what_is_wrong_at_the_start_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, postgres: EmbeddedPostgres
) -> None:
    write_upstreams(tmp_path / "upstreams.yaml")
    monkeypatch.setenv("UPSTREAMS_FILE", str(tmp_path / "upstreams.yaml"))
    monkeypatch.setenv("LLM_BASE_URL", NOWHERE)
    monkeypatch.setenv("LOCAL_STATE", str(tmp_path))
    wrongs = {
        "DATABASE_URL": {"DATABASE_URL": "mysql://x"},
        "libs.db migrate": {"DATABASE_URL": postgres.url()},
        "gone.yaml": {"SIDECAR_PROMPTS_FILE": "gone.yaml"},
        "SIDECAR_LEGACY_OPEN='perhaps'": {"SIDECAR_LEGACY_OPEN": "perhaps"},
        "HERMES_CTX='wide'": {"HERMES_CTX": "wide"},
    }
    for named, wrong in wrongs.items():
        with monkeypatch.context() as patch:
            for name, value in wrong.items():
                patch.setenv(name, value)
            with pytest.raises(Exception, match=r".") as caught:
                async with open_app(load(ListenSettings), load(SidecarSettings)):
                    pass
        assert named in (explain(caught.value) or ""), named


async def test_a_slow_look_does_not_keep_docker_waiting_and_counts_when_it_has_come(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("services.sidecar.lookout.WAIT_S", 0.05)
    async with two_models() as (hermes, phi3), sidecar(monkeypatch, tmp_path, *entries_of(hermes, phi3)) as http:
        hermes.reply = Reply("OK", delay_s=0.5)
        phi3.reply = "OK"
        await until(lambda: health(http), lambda found: found["phi3_loaded"] and not found["hermes_loaded"])
        await until(lambda: health(http), lambda found: found["hermes_loaded"])
        assert len(hermes.requests) == 1  # those who asked meanwhile shared one look


async def test_a_slow_model_stays_loaded_however_seldom_it_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("services.sidecar.lookout.WAIT_S", 0.05)
    for seldom in ("LATELY_S", "REUSED_S"):  # every look finds that it is too long since the one before
        monkeypatch.setattr(f"services.sidecar.lookout.{seldom}", 0.0)
    async with two_models() as (hermes, phi3), sidecar(monkeypatch, tmp_path, *entries_of(hermes, phi3)) as http:
        hermes.reply = Reply("OK", delay_s=0.5)
        assert not (await health(http))["hermes_loaded"]
        await until(lambda: health(http), lambda found: found["hermes_loaded"])
        for looks in (2, 3, 4):
            await until(lambda: health(http), lambda _, looks=looks: len(hermes.requests) >= looks)
            assert (await health(http))["hermes_loaded"]
        hermes.fault = Fault.STATUS  # what came of the next look is newer than its last word
        await until(lambda: health(http), lambda found: not found["hermes_loaded"])


@pytest.mark.parametrize("answered", [True, False])
async def test_a_model_without_a_free_slot_is_what_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, answered: bool
) -> None:
    for seldom in ("LATELY_S", "REUSED_S"):
        monkeypatch.setattr(f"services.sidecar.lookout.{seldom}", 0.0)
    monkeypatch.setattr("services.sidecar.lookout.PROBE", replace(PROBE, total_s=0.2))
    async with two_models() as (hermes, phi3):
        hermes.dialect = "openai"  # it has no figures that say whether it works
        of_hermes, of_phi3 = entries_of(hermes, phi3)
        one_slot = {**of_hermes, "dialect": "openai", "slots": 1, "shares": {"sidecar": 1}}
        async with sidecar(monkeypatch, tmp_path, one_slot, of_phi3, LLM_FIRST_TOKEN_TIMEOUT_S="30") as http:
            if answered:
                assert "generated_text" in await ask(http)
            hermes.reply = Reply("late", delay_s=30)
            long_one = asyncio.create_task(ask(http))
            await until(lambda: asyncio.sleep(0, hermes), lambda fake: fake.active == 1)
            assert (await health(http))["hermes_loaded"] is answered
            assert hermes.active == 1
            long_one.cancel()
            await asyncio.wait({long_one})


async def test_a_model_that_fell_silent_stands_until_the_look_has_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("services.sidecar.lookout.WAIT_S", 0.05)
    for seldom in ("LATELY_S", "REUSED_S"):
        monkeypatch.setattr(f"services.sidecar.lookout.{seldom}", 0.0)
    monkeypatch.setattr("services.sidecar.lookout.PROBE", replace(PROBE, total_s=0.5))
    async with two_models() as (hermes, phi3), sidecar(monkeypatch, tmp_path, *entries_of(hermes, phi3)) as http:
        assert "generated_text" in await ask(http)
        hermes.reply = Reply("late", delay_s=30)
        assert (await health(http))["hermes_loaded"]
        await until(lambda: health(http), lambda found: not found["hermes_loaded"])
        looks = len(hermes.requests)
        await until(lambda: health(http), lambda _: len(hermes.requests) > looks)
        assert not (await health(http))["hermes_loaded"]  # another look is on its way, and nothing has come since
