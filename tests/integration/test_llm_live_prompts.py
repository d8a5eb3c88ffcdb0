"""Prompts that change under a running process: the file, the activations, and either of them broken or away."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import httpx
import pytest
from prometheus_client import REGISTRY
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from libs.llm.calls import Recorder
from libs.llm.client import Client
from libs.llm.errors import ExperimentError, PromptFileError
from libs.llm.in_force import Ground
from libs.llm.prompts import LivePrompts
from libs.model_client import Model
from libs.probes import probe_app
from libs.upstreams.pool import Upstreams
from tests.integration.activation_cases import ON_FILE, promote, write_by_hand
from tests.integration.api_app import database_away
from tests.unit.llm_cases import PROMPTS, write_prompts
from tools.local_stack.postgres import EmbeddedPostgres

POLL_S = 0.02
BUMPED = PROMPTS.replace('verdict:\n  version: "1.0.0"', 'verdict:\n  version: "1.1.0"')


async def until(condition: Callable[[], object]) -> None:
    """Return once it holds; the test's own timeout ends a wait for ever."""
    while not condition():  # noqa: ASYNC110 - what is waited for raises no event here
        await asyncio.sleep(POLL_S)


@asynccontextmanager
async def following(engine: AsyncEngine, folder: Path, *, ab_buckets: str = "") -> AsyncGenerator[LivePrompts, None]:
    """Prompts that look often."""
    prompts = LivePrompts(engine, path=write_prompts(folder), ab_buckets=ab_buckets, poll_s=POLL_S)
    await prompts.start()
    try:
        yield prompts
    finally:
        await prompts.close()


def version(prompts: LivePrompts) -> str:
    return prompts.now.in_force["verdict"].version


async def ready(prompts: LivePrompts, folder: Path, engine: AsyncEngine) -> str:
    """The line about prompts on `/ready`."""
    model = Model(
        client=cast("Client", None),
        prompts=prompts,
        upstreams=Upstreams({}, role="api"),
        recorder=Recorder(engine, service="api", state_dir=folder),
        cache=None,
    )
    transport = httpx.ASGITransport(probe_app(model.checks({})))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answer = await http.get("/ready")
    assert answer.status_code == 200
    return next(line for line in answer.text.splitlines() if "prompts" in line)


def shown() -> dict[tuple[str, str], float]:
    """The gauge: share by version and source, of the key `verdict`."""
    samples = [sample for metric in REGISTRY.collect() for sample in metric.samples]
    return {
        (sample.labels["version"], sample.labels["source"]): sample.value
        for sample in samples
        if sample.name == "lexi_prompt_in_force" and sample.labels["key"] == "verdict"
    }


async def test_an_activation_comes_into_force_without_a_restart(engine: AsyncEngine, tmp_path: Path) -> None:
    async with following(engine, tmp_path) as prompts:
        assert (version(prompts), prompts.trouble) == ("1.0.0", None)
        first = await promote(engine)
        await until(lambda: version(prompts) == "1.1.0")
        one = prompts.now.in_force["verdict"]
        assert (one.source, one.activation) == ("activation", first)
        arms = (("1.1.0", 90.0), ("1.0.0", 10.0))
        second = await promote(engine, "1.1.0", arms)
        assert first is not None
        assert second is not None
        await until(lambda: prompts.now.experiments.running("verdict"))
        running = prompts.now.experiments.running("verdict")
        assert running is not None
        assert (running.arms, running.phase, running.control) == (arms, f"activation-{second.id}", "1.1.0")


async def test_a_state_that_was_taken_stays_as_it_was(engine: AsyncEngine, tmp_path: Path) -> None:
    async with following(engine, tmp_path) as prompts:
        taken = prompts.now
        await promote(engine)
        await until(lambda: version(prompts) == "1.1.0")
        assert taken.in_force["verdict"].version == "1.0.0"
        assert taken.now is taken


async def test_a_changed_file_is_picked_up_and_ends_the_activation_on_it(engine: AsyncEngine, tmp_path: Path) -> None:
    async with following(engine, tmp_path) as prompts:
        await promote(engine, "1.0.0", (("1.1.0", 1.0),))
        await until(lambda: prompts.now.in_force["verdict"].source == "activation")
        write_prompts(tmp_path, BUMPED)
        await until(lambda: prompts.now.in_force["verdict"].source == "file")
        one = prompts.now.in_force["verdict"]
        assert (one.version, one.experiment) == ("1.1.0", None)
        assert one.activation is not None
        write_prompts(tmp_path, PROMPTS)
        await until(lambda: prompts.now.in_force["verdict"].source == "activation")


BROKEN = [
    (PROMPTS.replace("sampling: {temperature: 0, max_tokens: 64}", "sampling: {heat: 0}"), "field sampling.heat"),
    ("verdict: [", "expected"),
    (PROMPTS.replace('"1.1.0":\n', '"1.1.1":\n'), "LLM_AB_BUCKETS: prompt 'verdict' has no version '1.1.0'"),
]


@pytest.mark.parametrize(("broken", "named"), BROKEN, ids=["field", "yaml", "bucket"])
async def test_a_broken_file_keeps_the_last_good_one_and_turns_ready_yellow(
    engine: AsyncEngine, tmp_path: Path, broken: str, named: str
) -> None:
    async with following(engine, tmp_path, ab_buckets="verdict:1.0.0@1,1.1.0@1") as prompts:
        good = prompts.now
        write_prompts(tmp_path, broken)
        await until(lambda: prompts.trouble)
        assert prompts.now is good
        line = await ready(prompts, tmp_path, engine)
        assert line.startswith("yellow prompts: ")
        assert named in line
        await promote(engine, ground=Ground("1.0.0", None, "1.0.0@1,1.1.0@1"))
        await until(lambda: version(prompts) == "1.1.0")
        write_prompts(tmp_path, PROMPTS)
        await until(lambda: prompts.trouble is None)


async def test_an_edit_of_a_released_version_is_refused_while_running(engine: AsyncEngine, tmp_path: Path) -> None:
    async with following(engine, tmp_path) as prompts:
        path, lock = tmp_path / "prompts.yaml", tmp_path / "prompts.lock"
        released = prompts.now.registry.version("verdict", "1.0.0")
        with lock.open("a", encoding="utf-8") as file:
            file.write(f"verdict 1.0.0 {released.sha256} 2026-01-01T00:00:00+00:00\n")
        await until(lambda: prompts.now.registry.version("verdict", "1.0.0").released_at)
        path.write_text(PROMPTS.replace("You judge entries. Answer", "You judge nothing. Answer"), encoding="utf-8")
        await until(lambda: prompts.trouble)
        assert "was edited after its release" in (prompts.trouble or "")
        assert prompts.now.registry.version("verdict", "1.0.0").sha256 == released.sha256
        lock.unlink()
        await until(lambda: "the lock cannot be read" in (prompts.trouble or ""))
        assert version(prompts) == "1.0.0"


async def test_half_a_file_is_never_taken(engine: AsyncEngine, tmp_path: Path) -> None:
    async with following(engine, tmp_path) as prompts:
        path = tmp_path / "prompts.yaml"
        versions: set[str] = set()
        for length in range(len(BUMPED) - 200, len(BUMPED) + 1, 10):
            path.write_text(BUMPED[:length], encoding="utf-8")
            await asyncio.sleep(POLL_S / 4)
            versions.update(prompts.now.registry.keys())
        write_prompts(tmp_path, BUMPED)
        await until(lambda: version(prompts) == "1.1.0")
        assert versions == {"verdict", "note", "health"}


async def test_a_start_without_the_database_begins_on_the_file_and_catches_up(
    engine: AsyncEngine, postgres: EmbeddedPostgres, database_url: str, tmp_path: Path
) -> None:
    await promote(engine)
    with database_away(postgres, database_url):
        prompts = LivePrompts(engine, path=write_prompts(tmp_path), poll_s=POLL_S)
        await prompts.start()
        assert version(prompts) == "1.0.0"
        assert "file and environment rule" in (prompts.trouble or "")
        assert (await ready(prompts, tmp_path, engine)).startswith("yellow prompts: the activations cannot be read (")
        with pytest.raises(Exception, match="not currently accepting connections"):
            await prompts.refresh()
    await until(lambda: version(prompts) == "1.1.0")
    assert prompts.trouble is None
    await prompts.close()


async def test_while_the_database_is_away_the_last_activations_hold(
    engine: AsyncEngine, postgres: EmbeddedPostgres, database_url: str, tmp_path: Path
) -> None:
    await promote(engine)
    async with following(engine, tmp_path) as prompts:
        assert version(prompts) == "1.1.0"
        with database_away(postgres, database_url):
            await until(lambda: prompts.trouble)
            assert "those read before still hold" in (prompts.trouble or "")
            assert version(prompts) == "1.1.0"
            write_prompts(tmp_path, PROMPTS.replace("Answer OK.", "Answer with OK."))
            await until(lambda: prompts.now.registry.active("health").system == "Answer with OK.")
            assert version(prompts) == "1.1.0"
            write_prompts(tmp_path, BUMPED)
            await until(lambda: prompts.now.in_force["verdict"].source == "file")
        await promote(engine, "1.0.0", ground=Ground("1.1.0", None, None))
        await until(lambda: version(prompts) == "1.0.0")
        await until(lambda: prompts.trouble is None)


async def test_an_activation_of_what_does_not_exist_is_trouble_and_not_followed(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    async with following(engine, tmp_path) as prompts:
        await promote(engine, "9.9.9")
        await until(lambda: prompts.trouble)
        assert version(prompts) == "1.0.0"
        assert "names version 9.9.9, which is not in the file" in await ready(prompts, tmp_path, engine)
        await promote(engine, "1.0.0")
        await until(lambda: prompts.trouble is None)


async def test_a_row_written_by_hand_that_makes_no_sense_changes_nothing(engine: AsyncEngine, tmp_path: Path) -> None:
    async with following(engine, tmp_path) as prompts:
        first = await promote(engine)
        await until(lambda: version(prompts) == "1.1.0")
        await write_by_hand(engine, "verdict", arms="[1]")
        await write_by_hand(engine, "note")
        await until(lambda: prompts.trouble)
        trouble = "of {} is not followed: its arms are not pairs of version and weight; append another"
        assert prompts.trouble == f"activation 2 {trouble.format('verdict')}; activation 3 {trouble.format('note')}"
        await prompts.refresh()
        assert prompts.now.in_force["verdict"].activation == first
        started = LivePrompts(engine, path=tmp_path / "prompts.yaml")
        await started.refresh()
        assert version(started) == version(prompts) == "1.1.0", "also after a restart"
        await promote(engine, "1.0.0")
        await until(lambda: version(prompts) == "1.0.0" and prompts.trouble == f"activation 3 {trouble.format('note')}")


async def test_what_is_activated_on_another_ground_ends_no_rollback(engine: AsyncEngine, tmp_path: Path) -> None:
    async with following(engine, tmp_path, ab_buckets="verdict:1.0.0@1,1.1.0@1") as prompts:
        rolled_back = await promote(engine, "1.0.0", ground=Ground("1.0.0", None, "1.0.0@1,1.1.0@1"))
        await until(lambda: prompts.now.in_force["verdict"].source == "activation")
        other = await promote(engine, "1.1.0", ground=ON_FILE)
        await until(lambda: prompts.now.in_force["verdict"].last == other)
        one = prompts.now.in_force["verdict"]
        assert (one.source, one.activation, one.version, one.experiment) == ("activation", rolled_back, "1.0.0", None)
        assert prompts.trouble is None


async def test_what_is_in_force_is_logged_and_shown_and_old_versions_leave_the_gauge(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    with capture_logs() as logs:
        async with following(engine, tmp_path, ab_buckets="note:1.0.0") as prompts:
            assert shown() == {("1.0.0", "file"): 1}
            await promote(engine, "1.0.0", (("1.0.0", 90.0), ("1.1.0", 10.0)))
            await until(lambda: ("1.1.0", "activation") in shown())
            assert shown() == {("1.0.0", "activation"): 0.9, ("1.1.0", "activation"): 0.1}
            await promote(engine, "1.1.0")
            await until(lambda: version(prompts) == "1.1.0")
            assert shown() == {("1.1.0", "activation"): 1}
            digest = prompts.now.registry.version("verdict", "1.1.0").sha256[:12]
    assert shown() == {}
    told = [
        tuple(line[name] for name in ("prompt_key", "version", "arms", "source"))
        for line in logs
        if line["event"] == "prompts_in_force"
    ]
    assert told == [
        ("verdict", "1.0.0", "", "file"),
        ("note", "1.0.0", "1.0.0@1", "environment"),
        ("health", "1.0.0", "", "file"),
        ("verdict", "1.0.0", "1.0.0@90,1.1.0@10", "activation"),
        ("verdict", "1.1.0", "", "activation"),
    ]
    assert [line["hash"] for line in logs if line["event"] == "prompts_in_force"][-1] == digest


async def test_what_is_wrong_at_the_start_is_raised(engine: AsyncEngine, tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match=r"absent\.yaml"):
        LivePrompts(engine, path=tmp_path / "absent.yaml")
    with pytest.raises(ExperimentError, match="no version '3'"):
        LivePrompts(engine, path=write_prompts(tmp_path), ab_buckets="verdict:3")
