"""`python -m bench.gateway [--quick] [--only cpu,stream,latency,slots,memory] [--candidates …] [--profile]`.

What a request through the gateway costs, with keys, limits, metrics and accounting on, beside its peers in the same
run. Exit status 1 where a goal is missed. The method is in `bench/README.md`.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Generator as Iterating
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from bench.database import migrated
from bench.gateway.candidates import DIRECT, OURS, PEERS, STARTS, Candidate, start_ours
from bench.gateway.cost import CHUNKS, GAP_MS, IN_FLIGHT, Meter
from bench.gateway.hotspots import described, sample
from bench.gateway.leaving import CASES, freed
from bench.gateway.machine import CORES, LOAD_CORE, WORKER_CORE, memory_mb
from bench.gateway.memory import memory
from bench.gateway.peers import NotMeasured
from bench.gateway.table import Goal, Results, cpu_goals, goals_of, table
from bench.gateway.wire import BenchError, Generator, Upstream
from tools.local_stack.postgres import EmbeddedPostgres

PARTS = ("cpu", "stream", "latency", "slots", "memory")
DATABASE = "bench"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run and how much of it."""

    only: tuple[str, ...]
    candidates: tuple[str, ...]
    profile: bool
    rounds: int
    pace_s: float
    departures: int
    departures_of_peers: int
    requests: int
    profile_s: float


@dataclass(slots=True)
class Run:
    """Everything that is running, and what it has shown so far."""

    plan: Plan
    folder: Path
    database: EmbeddedPostgres
    upstream: Upstream
    generator: Generator
    results: Results
    candidates: list[Candidate]

    @property
    def ours(self) -> Candidate | None:
        """The gateway, where it is among the candidates."""
        return next((one for one in self.candidates if one.name == OURS), None)


def listed(allowed: Sequence[str], words: str) -> tuple[str, ...]:
    """Comma-separated words, each of them known."""
    found = tuple(word for word in words.split(",") if word)
    unknown = [word for word in found if word not in allowed]
    if unknown or not found:
        raise argparse.ArgumentTypeError(f"there are: {', '.join(allowed)}")
    return found


def read_plan(arguments: Sequence[str] | None) -> Plan:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description="The gateway beside its peers.")
    parser.add_argument("--quick", action="store_true", help="one round, small counts: under two minutes")
    parser.add_argument("--only", type=lambda words: listed(PARTS, words), default=PARTS, help=",".join(PARTS))
    parser.add_argument(
        "--candidates", type=lambda words: listed((OURS, *PEERS), words), default=(OURS, *PEERS), help="peers beside it"
    )
    parser.add_argument("--profile", action="store_true", help="only where our CPU goes, plain and streamed")
    asked = parser.parse_args(arguments)
    size = (1, 4.0, 20, 0, 10_000, 4.0) if asked.quick else (5, 4.0, 100, 20, 50_000, 8.0)
    candidates = () if asked.profile else asked.candidates
    return Plan(asked.only, candidates, asked.profile, *size)


@contextmanager
def running(plan: Plan) -> Iterating[Run]:
    """Database, upstream and candidates, all ended after the block, or by the kernel with this process."""
    os.sched_setaffinity(0, {LOAD_CORE})
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lexi-bench-")))
        folder.chmod(0o755)  # the database may run as another user
        database = EmbeddedPostgres(folder / "postgres", durable=False, report=lambda _: None)
        database.start()
        stack.callback(database.stop)
        upstream = Upstream(folder)
        stack.callback(upstream.stop)
        generator = Generator(folder)
        run = Run(plan, folder, database, upstream, generator, Results(Meter(generator, upstream)), [])
        for name in plan.candidates:
            try:
                run.candidates.append(started(run, name))
            except NotMeasured as reason:
                if name == OURS:
                    raise BenchError(str(reason)) from reason
                print(f"  {name}: not measured: {reason}", flush=True)
                continue
            stack.callback(run.candidates[-1].stop)
        yield run


def started(run: Run, name: str) -> Candidate:
    """A candidate that answers. Raises `NotMeasured`."""
    if name == OURS:
        return start_ours(run.folder, run.upstream.port, database=migrated(run.database, DATABASE))
    return STARTS[name](run.folder, run.upstream.port)


def measure(run: Run) -> None:
    """The parts of the plan, the candidates taking turns within each round."""
    for candidate in run.candidates:
        run.results.meter.warm_up(candidate)
    cpu_rounds(run, [stream for part, stream in (("cpu", False), ("stream", True)) if part in run.plan.only])
    if "latency" in run.plan.only:
        latency_rounds(run)
    if "slots" in run.plan.only:
        departures(run)
    if run.ours is not None:
        run.ours.stop()
    if run.ours is not None and "memory" in run.plan.only:
        fresh = started(run, OURS)
        try:
            run.results.memory = memory(fresh, run.results.meter, run.upstream, last=run.plan.requests)
        finally:
            fresh.stop()


def cpu_rounds(run: Run, kinds: Sequence[bool]) -> None:
    """CPU of plain and streamed requests; memory as it stands after them."""
    for _ in range(run.plan.rounds):
        for candidate in run.candidates:
            for stream in kinds:
                run.results.meter.cpu(candidate, stream=stream)
    run.results.resident_mb = {one.name: memory_mb(one.pid) for one in run.candidates}


def latency_rounds(run: Run) -> None:
    """Latency of each candidate and of the upstream itself."""
    for _ in range(run.plan.rounds):
        for candidate in (Candidate(DIRECT, run.upstream.port), *run.candidates):
            run.results.meter.latency(candidate, seconds=run.plan.pace_s)


def departures(run: Run) -> None:
    """Clients that leave, in each of the three ways."""
    for candidate in run.candidates:
        tries = run.plan.departures if candidate.name == OURS else run.plan.departures_of_peers
        if not tries:
            continue
        found = [freed(candidate, run.upstream, case, tries=tries) for case in CASES]
        run.results.leaving[candidate.name] = found
        run.results.meter.of(candidate.name).asked += sum(one.tries for one in found)


def profile(run: Run, *, top: int) -> None:
    """Where our CPU goes in the two hot cases: functions of a process of its own, so that no count is disturbed."""
    ours = started(run, OURS)
    try:
        for stream in (False, True):
            run.upstream.set(chunks=CHUNKS, gap_ms=GAP_MS)
            load = run.generator.begin(ours.port, ours.key, stream=stream, count=10_000_000)
            try:
                time.sleep(0.5)
                spots = sample(ours.pid, run.plan.profile_s, run.folder)
            finally:
                load.kill()
                load.communicate()
            print(f"where our CPU goes, {'64-chunk streams' if stream else 'not streamed'}:")
            print("\n".join(described(spots, top=top)), flush=True)
    except NotMeasured as reason:
        print(f"  profile: not measured: {reason}")
    finally:
        ours.stop()


def concluded(run: Run) -> list[Goal]:
    """Count the rows ours has left, and print the table, also of a run that ended early."""
    if run.ours is not None:
        run.ours.stop()
        stored = int(run.database.query("select count(*) from llm_calls", database=DATABASE))
        run.results.rows = stored, run.results.meter.of(OURS).asked
    goals = goals_of(run.results, run.plan.only)
    print("\n".join(table(run.results, [one.name for one in run.candidates])))
    print("\n".join(f"  {goal.verdict:>12}  {goal.text}" for goal in goals), flush=True)
    return goals


def leave(number: int, _frame: object) -> NoReturn:
    """End through the blocks that clean up."""
    sys.exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where a goal is missed, 2 where the bench itself cannot run."""
    plan = read_plan(arguments)
    signal.signal(signal.SIGTERM, leave)
    begun = time.monotonic()
    print(
        f"gateway: one worker each on core {WORKER_CORE}, load on core {LOAD_CORE} of {len(CORES)}; "
        f"{IN_FLIGHT} in flight; {plan.rounds} round(s), candidates in turn",
        flush=True,
    )
    try:
        with running(plan) as run:
            if plan.profile:
                profile(run, top=25)
                return 0
            try:
                measure(run)
            finally:
                goals = concluded(run)
            dear = cpu_goals(run.results.meter.costs, plan.only)
            if any(goal.verdict in {"aim missed", "MISSED"} for goal in dear):
                profile(run, top=12)
    except BenchError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    print(f"  whole run {time.monotonic() - begun:.0f} s")
    return 1 if any(goal.verdict == "MISSED" for goal in goals) else 0


if __name__ == "__main__":
    sys.exit(main())
