"""Which place is tried first: what lives before what looks dead, what is idle before what is busy, in turns."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from libs.upstreams.choice import best_first, usable_first
from libs.upstreams.types import UpstreamState, UpstreamStatus


@dataclass(frozen=True)
class Spot:
    """A place as the choice sees it."""

    number: int
    load: float
    dead: bool


def spots(first: int) -> st.SearchStrategy[list[Spot]]:
    seen = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0, 3.0]), st.booleans()), max_size=6)
    return seen.map(lambda pairs: [Spot(first + number, *pair) for number, pair in enumerate(pairs)])


@given(spots(0), spots(100), st.integers(0, 50))
def test_every_place_once_the_living_first_replicas_by_load_fallbacks_as_declared(
    replicas: list[Spot], fallbacks: list[Spot], turn: int
) -> None:
    order = best_first(replicas, fallbacks, turn=turn)
    assert sorted(spot.number for spot in order) == sorted(spot.number for spot in (*replicas, *fallbacks))
    assert [spot.dead for spot in order] == sorted(spot.dead for spot in order)
    for dead in (False, True):
        group = [spot for spot in order if spot.dead is dead]
        ours, others = [spot for spot in group if spot in replicas], [spot for spot in group if spot in fallbacks]
        assert group == ours + others
        assert [spot.load for spot in ours] == sorted(spot.load for spot in ours)
        assert others == [spot for spot in fallbacks if spot.dead is dead]


@given(st.integers(1, 6))
def test_equals_take_turns(many: int) -> None:
    replicas = [Spot(number, 0.0, dead=False) for number in range(many)]
    assert {best_first(replicas, [], turn=turn)[0].number for turn in range(many)} == set(range(many))


STATES: tuple[UpstreamState, ...] = ("up", "busy", "stuck", "down", "unknown")


@given(st.lists(st.tuples(st.sampled_from(STATES), st.integers(0, 2)), max_size=8))
def test_fallbacks_keep_their_order_but_for_the_dead_and_those_without_a_share(
    declared: list[tuple[UpstreamState, int]],
) -> None:
    statuses = [UpstreamStatus(str(number), "m", state, "", 0, share) for number, (state, share) in enumerate(declared)]
    mine = [status for status in statuses if status.slots]
    gone = [status.name for status in mine if status.state in {"down", "stuck"}]
    assert usable_first(statuses) == (*(status.name for status in mine if status.name not in gone), *gone)
