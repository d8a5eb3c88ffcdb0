"""`python -m libs.exposures KEY [--phase PHASE] [--out FILE]`: the report on an experiment as one HTML file."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from libs import telemetry
from libs.db.opening import open_database
from libs.exposures import phases
from libs.exposures.course import courses
from libs.exposures.guardrails import evaluate
from libs.exposures.looks import counted
from libs.exposures.page import Story, page
from libs.llm.activations import history, latest
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.process import explain
from libs.service_settings import ListenSettings
from libs.settings import load
from libs.telemetry import mask_text

READ_S = 60.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m libs.exposures", description="Write the report on an experiment.")
    parser.add_argument("key", help="the prompt, such as policy")
    parser.add_argument("--phase", help="a phase that has ended; the running one where left out")
    parser.add_argument("--out", type=Path, help="the file to write (default: experiment-KEY.html in LOCAL_STATE)")
    return parser


async def told(key: str, phase: str | None) -> Story:
    """Everything the page tells of an experiment. Raises `NoExperiment`, `DatabaseError`, or what the file says."""
    settings = load(LLMSettings)
    registry = Registry.load(settings.prompts_file, settings.prompts_lock)
    async with (
        open_database(application="experiment", pool_size=1, command_timeout=READ_S) as engine,
        engine.connect() as connection,
    ):
        reader = await connection.execution_options(postgresql_readonly=True)
        now = Prompts.build(registry, settings.llm_ab_buckets, activations=await latest(reader))
        asked = await phases.find(reader, now, key, phase)
        guardrails = evaluate(asked.experiment, await counted(reader, key, asked.experiment))
        changes = await history(reader, key)
        read = await phases.read(reader, asked)
    made = await phases.report_on(asked, read)
    return Story(made, guardrails, changes, courses(asked, read), datetime.now(UTC))


def main(arguments: Sequence[str]) -> int:
    """Write the page and print what it comes to. 2 with one line on stderr where it cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        out: Path = options.out or load(ListenSettings).local_state / f"experiment-{options.key}.html"
        story = asyncio.run(told(options.key, options.phase))
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(story), encoding="utf-8")
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        sys.stderr.write(f"{mask_text(line)}\n")
        return 2
    sys.stdout.write(f"{story.report.sentence}\n{out}\n")
    return 0


if __name__ == "__main__":
    telemetry.configure("experiment", level="ERROR")
    sys.exit(main(sys.argv[1:]))
