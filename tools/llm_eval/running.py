"""`run` and `resume`: from what was asked for to a verdict with its reasons."""

import argparse
import asyncio
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from libs.evaluation.cases.dataset import DatasetInfo
from libs.evaluation.report.table import table
from libs.evaluation.running.folder import Folder, FolderError
from libs.evaluation.running.plan import Pinned, Plan, PlanError
from libs.judgement.rules import RULES_FILE
from libs.llm.prompts import Prompts
from tools.llm_eval.carrying import Carried, carry_out, carry_out_by_workers
from tools.llm_eval.database import Database, database_if_there
from tools.llm_eval.model import Road, open_road, prompts_now
from tools.llm_eval.outcome import code, put_on_record, write_outcome
from tools.llm_eval.pinning import pins, spoken
from tools.llm_eval.preparing import Prepared, data_set, default_name, prepare
from tools.llm_eval.refusal import FAILED, INTERRUPTED, HarnessFailed, UsageRefused
from tools.llm_eval.server import Server, differences
from tools.llm_eval.stamp import sha256_of


async def run(options: argparse.Namespace) -> int:
    """Begin an evaluation and bring it to its end; the exit code.

    What is wrong with the request is found before the first question: data set, versions, thresholds, model.
    """
    if options.workers and options.rate is not None:
        raise UsageRefused("--rate and --workers do not go together: workers share no clock for arrivals")
    info = await asyncio.to_thread(data_set, options)
    async with database_if_there() as database:
        require_workers(options.workers, database)
        prompts = await prompts_now(database.engine)
        pinned = pins(prompts, options.prompt or (), options.version or ())
        async with open_road(prompts, database.engine, cache=options.cache == "on") as road:
            with Folder.making(options.results, options.name or default_name(pinned), at=datetime.now(UTC)) as folder:
                tell([f"{road.server.model} at {road.server.base_url} ({road.server.named}); making the cases …"])
                made = await asyncio.to_thread(prepare, options, pinned, info=info, road=road, folder=folder)
            tell(_opening(options, folder, made, info=info, road=road, prompts=prompts))
            tell(_without(database))
            return await _to_the_end(options, folder, made.plan, road=road, database=database)


async def resume(options: argparse.Namespace) -> int:
    """Go on with a run that was broken off; the exit code. Raises `UsageRefused` where what is asked has changed."""
    folder, plan = opened(options.folder)
    require_same_cases(folder, plan)
    async with database_if_there() as database:
        require_workers(plan.workers, database)
        prompts = await prompts_now(database.engine)
        require_same_prompts(plan, prompts)
        async with open_road(prompts, database.engine, cache=plan.cache) as road:
            require_same_model(plan, road.server)
            tell([f"going on with {folder.path}", *_without(database)])
            return await _to_the_end(options, folder, plan, road=road, database=database)


async def _to_the_end(
    options: argparse.Namespace, folder: Folder, plan: Plan, *, road: Road, database: Database
) -> int:
    stop, asked_by = asyncio.Event(), options.operator or "command line"
    retry = bool(getattr(options, "retry_errors", False))
    try:
        if plan.workers and database.engine is not None:
            carried = await carry_out_by_workers(
                folder, plan, database.engine, stop=stop, asked_by=asked_by, retry_errors=retry
            )
        else:
            carried = await carry_out(folder, plan, road, stop=stop, retry_errors=retry)
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        tell([_go_on(folder, retry=retry)])
        return INTERRUPTED
    if carried.why is not None:
        return broken_off(folder, plan, carried, begun=options.command == "run", retry=retry)
    try:
        summary, html = await asyncio.to_thread(write_outcome, folder, plan, parquet=options.parquet)
    except Exception:
        tell([f"all {plan.items} answers are safe; once what follows is mended: {again('report', folder.path)}"])
        raise
    registered = await put_on_record(database, plan, summary=summary, html=html, asked_by=asked_by)
    show(folder, table(summary), registered)
    if not carried.answered:
        raise HarnessFailed(
            f"none of {plan.items} questions got an answer: this says nothing about any prompt. {folder.rows} tells "
            f"why; once that is mended: {again('resume', folder.path)} --retry-errors"
        )
    return code(summary)


def broken_off(folder: Folder, plan: Plan, carried: Carried, *, begun: bool, retry: bool) -> int:
    """Say why a run ended early, and what is left of it.

    Raises `HarnessFailed` where nothing ever came of one that was `begun` just now; one gone on with stays.
    """
    have = plan.items - carried.missing
    if begun and carried.why and have == 0 and not plan.workers:
        folder.remove()
        raise HarnessFailed(f"{carried.why}. Nothing was written.")
    tell([carried.why or "stopped", f"{have} of {plan.items} answers are safe. {_go_on(folder, retry=retry)}"])
    if plan.workers:
        tell([f"The workers stay at it meanwhile. End that with: {again('cancel', folder.path)}"])
    return FAILED if carried.why else INTERRUPTED


def _go_on(folder: Folder, *, retry: bool) -> str:
    return f"Go on with: {again('resume', folder.path)}{' --retry-errors' if retry else ''}"


def _opening(
    options: argparse.Namespace,
    folder: Folder,
    made: Prepared,
    *,
    info: DatasetInfo | None,
    road: Road,
    prompts: Prompts,
) -> Iterable[str]:
    """What is about to happen."""
    plan, places = made.plan, road.places()
    yield from (f"  {line}" for line in spoken(prompts, plan.versions, options.version or ()))
    yield f"  {made.cases}"
    if made.aim:
        yield f"  {made.aim}"
    if info is not None and info.without_moments:
        yield f"  {info.without_moments} have features without a moment of their own; their as_of vouches for those"
    times = "" if plan.repeat == 1 else f" ({plan.repeat} for each case and version)"
    yield f"  {plan.items} questions{times}, {_manner(plan, places)}"
    if plan.concurrency is not None and plan.concurrency > places and not plan.workers:
        yield f"  --concurrency {plan.concurrency} is cut: the share of eval in configs/upstreams.yaml is {places}"
    yield f"results in {folder.path}"


def _manner(plan: Plan, places: int) -> str:
    if plan.workers:
        return f"by {plan.workers} workers"
    return f"{min(places, plan.concurrency or places)} at once" if plan.rate is None else f"{plan.rate:g} a second"


def _without(database: Database) -> Iterable[str]:
    if database.engine is None:
        yield f"without a database ({database.without}): no call goes on record, the result is not registered"


def opened(path: Path) -> tuple[Folder, Plan]:
    """A folder of results with its plan. Raises `UsageRefused` where there is none."""
    try:
        folder = Folder.open(path)
        return folder, folder.read_plan()
    except (FolderError, PlanError) as error:
        raise UsageRefused(str(error)) from error


def require_workers(workers: int, database: Database) -> None:
    """Raise `HarnessFailed` where workers are to do it and their database is not there."""
    if workers and database.engine is None:
        raise HarnessFailed(f"--workers needs the Postgres of the workers, services.jobs: {database.without}")


def require_same_cases(folder: Folder, plan: Plan) -> None:
    """Raise `UsageRefused` where the cases are not those that were planned."""
    if sha256_of(folder.cases) != plan.cases_sha256:
        raise UsageRefused(f"{folder.cases} was changed since the run began; put it back, or begin a new run")


def require_same_prompts(plan: Plan, prompts: Prompts) -> None:
    """Raise `UsageRefused` where a version, or the rules, say something else than when the run was planned."""
    for pin in plan.versions:
        _require_same_version(pin, prompts)
    if sha256_of(RULES_FILE) != plan.rules_sha256:
        raise UsageRefused(f"{RULES_FILE} was changed since the run began; put it back, or begin a new run")


def _require_same_version(pin: Pinned, prompts: Prompts) -> None:
    found = prompts.registry.version(pin.prompt, pin.version)
    if found.sha256 != pin.hash:
        raise UsageRefused(
            f"{pin} says something else than when the run began ({pin.hash[:12]} then, {found.sha256[:12]} now); "
            "put it back, or begin a new run"
        )


def require_same_model(plan: Plan, server: Server) -> None:
    """Raise `UsageRefused` where another model answers than when the run began: one result, one model."""
    began_with = plan.stamp.get("model")
    if not isinstance(began_with, Mapping):
        raise UsageRefused("plan.json does not say which model the run began with (stamp.model); begin a new run")
    differs = differences(cast("Mapping[str, object]", began_with), server.fingerprint)
    if differs:
        said = "; ".join(f"{name} was {was}, is {now}" for name, was, now in differs)
        raise UsageRefused(f"another model answers at {server.base_url} than when the run began: {said}")


def show(folder: Folder, figures: str, registered: str) -> None:
    """Print the figures on stdout, and where the rest is."""
    sys.stdout.write(f"{figures.rstrip()}\n\n")
    sys.stdout.write(f"report   {uri(folder.report)}\nfolder   {folder.path}\n{registered}\n")
    sys.stdout.flush()


def again(command: str, folder: Path) -> str:
    """What to type for another command on a folder."""
    python = Path(sys.executable)
    shown = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    return f"{shown} -m tools.llm_eval.run_eval {command} {folder}"


def uri(path: Path) -> str:
    """A file as a browser takes it."""
    return path.resolve().as_uri()


def tell(lines: Iterable[str]) -> None:
    """Say something beside the figures."""
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    sys.stderr.flush()
