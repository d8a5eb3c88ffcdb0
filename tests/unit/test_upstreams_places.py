"""Where requests for a model may go: its replicas, then what they fall back on, where the role has a share of it."""

from collections.abc import Mapping

from libs.upstreams.config import UpstreamEntry
from libs.upstreams.pool import Upstreams
from libs.upstreams.types import Role


def entry(name: str, model: str, *fallback: str, shares: Mapping[Role, int] | None = None) -> UpstreamEntry:
    shares = {"api": 4} if shares is None else shares
    return UpstreamEntry(name, model, f"http://{name}/v1", "vllm", 8, shares, fallback=fallback)


def pool(*entries: UpstreamEntry) -> Upstreams:
    return Upstreams({one.name: one for one in entries}, role="api")


def names(upstreams: Upstreams, model: str, *refused: str) -> list[str]:
    return [place.entry.name for place in upstreams.places(model, allowed=lambda other: other not in refused)]


def test_models_are_those_the_role_has_a_share_of_each_once_in_the_files_order() -> None:
    ours = pool(
        entry("lexi", "Lexi"), entry("b", "Big"), entry("two", "Lexi"), entry("theirs", "Hidden", shares={"jobs": 4})
    )
    assert ours.models() == ("Lexi", "Big")
    assert names(ours, "Hidden") == names(ours, "Nothing") == []


def test_replicas_share_the_load_and_the_least_loaded_is_first() -> None:
    ours = pool(entry("a", "Lexi"), entry("b", "Lexi"), entry("c", "Lexi"))
    assert {names(ours, "Lexi")[0] for _ in range(3)} == {"a", "b", "c"}
    a, b, c = sorted(ours.places("Lexi", allowed=lambda _: True), key=lambda place: place.entry.name)
    for place, held in ((a, 2), (b, 3), (c, 1)):
        for _ in range(held):
            assert place.slots.take_now()
    assert [names(ours, "Lexi") for _ in range(3)] == [["c", "a", "b"]] * 3
    b.slots.resize(8)  # three of eight are less than two of four
    assert names(ours, "Lexi") == ["c", "b", "a"]


def test_fallbacks_follow_in_the_files_order_each_once_and_only_where_their_model_is_allowed() -> None:
    ours = pool(
        entry("a", "Lexi", "hosted", "b"),
        entry("b", "Lexi", "small", "hosted", "theirs"),
        entry("small", "Small"),
        entry("hosted", "Hosted", "small"),
        entry("theirs", "Hidden", shares={}),
    )
    assert names(ours, "Lexi")[2:] == ["hosted", "small"]
    assert names(ours, "Lexi", "Hosted")[2:] == ["small"]
    assert names(ours, "Lexi", "Hosted", "Small")[2:] == []
    assert names(ours, "Hosted") == ["hosted", "small"]
    assert names(ours, "Small") == ["small"]


def test_what_looks_dead_comes_last_and_is_still_there() -> None:
    ours = pool(entry("a", "Lexi", "c"), entry("b", "Lexi"), entry("c", "Small"))
    by_name = {place.entry.name: place for place in ours.places("Lexi", allowed=lambda _: True)}
    by_name["a"].pulse.state = "stuck"
    assert names(ours, "Lexi") == ["b", "c", "a"]
    by_name["b"].breaker.trip("a test")
    assert names(ours, "Lexi")[0] == "c"
    by_name["b"].breaker.seen_back()
    assert names(ours, "Lexi") == ["b", "c", "a"]


def test_the_bound_of_what_waits_follows_share_and_context_unless_it_is_given() -> None:
    def bound(one: UpstreamEntry) -> int:
        return pool(one).places("Lexi", allowed=lambda _: True)[0].slots.queue_tokens

    shares: dict[Role, int] = {"api": 3}
    assert bound(UpstreamEntry("a", "Lexi", "http://a/v1", "vllm", 8, shares)) == 3 * 4096
    assert bound(UpstreamEntry("a", "Lexi", "http://a/v1", "vllm", 8, shares, 1000)) == 3000
    assert bound(UpstreamEntry("a", "Lexi", "http://a/v1", "vllm", 8, shares, 1000, queue_tokens=5)) == 5
