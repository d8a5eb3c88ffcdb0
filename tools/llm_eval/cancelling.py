"""`cancel`: take an evaluation back from the workers. What came home until then stays in the folder."""

import argparse
import sys

from libs.evaluation.sharing.store import cancel
from tools.llm_eval.database import database_if_there
from tools.llm_eval.refusal import PASSED, HarnessFailed, UsageRefused
from tools.llm_eval.running import again, opened


async def cancel_run(options: argparse.Namespace) -> int:
    """Cancel it; 0. Raises `UsageRefused` where no worker is at it, `HarnessFailed` without their database."""
    folder, plan = opened(options.folder)
    async with database_if_there() as database:
        if database.engine is None:
            raise HarnessFailed(f"workers are told through their Postgres: {database.without}")
        who = options.operator or "command line"
        async with database.engine.begin() as connection:
            was_running = await cancel(connection, plan.evaluation_id, why=f"cancelled by {who}")
    if not was_running:
        raise UsageRefused(f"no worker is at {plan.evaluation_id} ({folder.path})")
    sys.stdout.write(f"cancelled; what came home is safe. To hand out the rest again: {again('resume', folder.path)}\n")
    return PASSED
