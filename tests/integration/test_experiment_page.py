"""`python -m libs.exposures` on a real Postgres: from exposures to a file that a person opens."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.exposures.__main__ import main, told
from libs.exposures.course import POINTS
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from tests.integration.guardrail_cases import PROMPTS, phase_of
from tests.unit.llm_cases import write_prompts

DAYS = 40

SEED = text(
    """
    insert into exposures (key, forecast_id, phase, unit, arm, feed, ticker, horizon, as_of, side, judged_at, status,
      timed_out, cached, total_ms, tokens, allow, rules_allow, settled_at, realised_return)
    select 'policy', gen_random_uuid(), :phase, t || '|' || d, (array['1.0.0', '1.1.0', '1.2.0'])[1 + (t * 7 + d) % 3],
      'f', 'T' || t, '1d', timestamptz '2026-01-05 21:00Z' + d * interval '1 day', 'buy', now(),
      case when (t * 5 + d * 3) % 11 = 0 then 'invalid' else 'ok' end, false, false, 300 + (t * 31 + d * 17) % 97,
      100 + (t + d) % 7, (t * 3 + d) % 5 < 2, (t * 2 + d) % 7 < 5, now(), ((t * 13 + d * 29) % 41 - 20) / 1000.0
    from generate_series(1, 25) as t, generate_series(0, :days - 1) as d
    """
)


@pytest.fixture
async def phase(engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The running phase of an experiment with exposures, and the environment that a person has."""
    path = write_prompts(tmp_path, PROMPTS)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("PROMPTS_FILE", str(path))
    monkeypatch.setenv("LOCAL_STATE", str(tmp_path / "state"))
    running = phase_of(Prompts.build(Registry.load(path, path.with_suffix(".lock"))))
    async with engine.begin() as connection:
        await connection.execute(SEED, {"phase": running, "days": DAYS})
    return running


async def test_the_running_experiment_is_written_into_the_state_folder(
    phase: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(main, ["policy"]) == 0
    out = tmp_path / "state" / "experiment-policy.html"
    sentence, said = capsys.readouterr().out.splitlines()[-2:]
    assert said == str(out)
    html = out.read_text()
    assert phase in html
    assert sentence.split(":")[0] in html
    assert html.count("<svg") == 16  # eight metrics of two candidates


async def test_a_phase_can_be_named_and_so_can_the_file(phase: str, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report.html"
    assert await asyncio.to_thread(main, ["policy", "--phase", phase, "--out", str(out)]) == 0
    assert "running" in out.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["note"], "no experiment runs on note"),
        (["nothing"], "there is no prompt nothing"),
        (["policy", "--phase", "activation-9"], "policy has no phase activation-9; the last phase was file-"),
    ],
)
@pytest.mark.usefixtures("phase")
async def test_what_is_not_there_is_said_in_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(main, words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "state").exists()


@pytest.mark.usefixtures("phase")
async def test_a_course_ends_where_the_report_is() -> None:
    story = await told("policy", None)
    compared = 0
    for metric in story.report.metrics:
        for difference in metric.differences:
            looks = story.courses[difference.candidate][metric.metric.name]
            assert 2 <= len(looks) <= POINTS
            assert [look.day for look in looks] == sorted({look.day for look in looks})
            assert looks[-1].value == pytest.approx(difference.value)
            assert (looks[-1].estimate is None) == (difference.estimate is None)
            if difference.estimate is not None:
                assert looks[-1].estimate == difference.estimate
                compared += 1
    assert compared >= 8
