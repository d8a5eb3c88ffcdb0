"""The table of activations: order, history, and who judged by an older row."""

import asyncio

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.activations import activate, history, latest
from libs.llm.errors import ExperimentError
from libs.llm.in_force import Ground
from tests.integration.activation_cases import ON_FILE, promote, write_by_hand


async def test_activations_are_kept_in_order_with_who_and_why(engine: AsyncEngine) -> None:
    ground = Ground("1.0.0", {"arms": [["1.1.0", 0.1], ["1.0.0", 99.9]], "unit": "ticker"}, "1.1.0@1,1.0.0@1")
    arms = (("1.1.0", 0.1), ("1.0.0", 99.9))
    made = [await promote(engine, "1.1.0", arms, ground=ground), await promote(engine, "1.0.0", ground=ground)]
    async with engine.connect() as connection:
        assert await history(connection, "verdict") == made[::-1]
        assert await history(connection, "verdict", limit=1) == made[1:]
        assert await history(connection, "other") == []
        assert await latest(connection) == {"verdict": (made[1],)}
    [first, _] = made
    assert first is not None
    assert (first.arms, first.ground, first.who, first.why) == (arms, ground, "ada", "better")


async def test_who_judged_by_an_older_row_writes_nothing(engine: AsyncEngine) -> None:
    first = await promote(engine, expected=None)
    assert first is not None
    assert await promote(engine, expected=None) is None
    second = await promote(engine, "1.0.0", expected=first.id)
    assert second is not None
    assert await promote(engine, expected=first.id) is None
    assert await promote(engine) is not None


async def test_of_many_who_judged_by_the_same_row_one_writes(engine: AsyncEngine) -> None:
    first = await promote(engine)
    assert first is not None
    written = await asyncio.gather(*(promote(engine, "1.0.0", expected=first.id) for _ in range(8)))
    assert [one is not None for one in written].count(True) == 1


async def test_an_activation_needs_a_name_and_arms_that_can_be_drawn(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        with pytest.raises(ExperimentError, match="who does this"):
            await activate(connection, key="verdict", version="1.0.0", arms=(), who=" ", why="", ground=ON_FILE)
        with pytest.raises(ExperimentError, match=r"the arms of verdict: version 1\.0\.0 is named twice"):
            await activate(
                connection,
                key="verdict",
                version="1.0.0",
                arms=(("1.0.0", 1), ("1.0.0", 1)),
                who="ada",
                why="",
                ground=ON_FILE,
            )
        assert await latest(connection) == {}


async def test_the_latest_of_each_ground_is_read_newest_first(engine: AsyncEngine) -> None:
    other = Ground("1.0.0", {"arms": [["1.0.0", 1]], "unit": "ticker"}, None)
    made = [await promote(engine, ground=ground) for ground in (ON_FILE, other, ON_FILE, Ground("1.0.0", None, "x@1"))]
    async with engine.connect() as connection:
        assert await latest(connection) == {"verdict": (made[3], made[2], made[1])}


@pytest.mark.parametrize(
    ("arms", "experiment"),
    [
        ('{"1.0.0": 90}', None),
        ("{}", None),
        ("[1]", None),
        ('"ab"', None),
        ("0", None),
        (f'[["1.0.0", 1{"0" * 400}]]', None),
        (None, '"none"'),
        (None, '{"unit": "ticker"}'),
        (None, '{"arms": 1}'),
    ],
)
async def test_a_row_that_cannot_be_read_is_one_with_a_problem(
    engine: AsyncEngine, arms: str | None, experiment: str | None
) -> None:
    good = await promote(engine)
    await write_by_hand(engine, "verdict", arms=arms, experiment=experiment)
    async with engine.connect() as connection:
        [broken, older] = await history(connection, "verdict")
        assert await latest(connection) == {"verdict": (broken, good)}
    assert (older, older.problem, broken.arms) == (good, None, ())
    assert "append another" in (broken.problem or "")
    after = await promote(engine, expected=broken.id)
    assert after is not None
