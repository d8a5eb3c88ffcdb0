"""How an experiment on a prompt stands: who was given what, what came of it, and what that means."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from libs.exposures.answer import Experiment, experiment_of, read_experiment
from libs.exposures.phases import NoExperiment
from libs.keys import require
from libs.problems import NotFound
from services.api import deps

router = APIRouter(prefix="/llm/admin", dependencies=[Depends(require("admin"))])


class ExperimentQuery(BaseModel):
    """Which phase. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid")

    phase: Annotated[str | None, Field(min_length=1, max_length=64, description="the running one where left out")] = (
        None
    )


@router.get("/experiments/{key}")
async def experiment(state: deps.State, key: str, query: Annotated[ExperimentQuery, Query()]) -> Experiment:
    """The report on the running phase, or on one that has ended."""
    async with state.engine.connect() as connection:
        reader = await connection.execution_options(postgresql_readonly=True)
        try:
            reading = await read_experiment(reader, state.prompts.now, key, query.phase)
        except NoExperiment as error:
            raise NotFound(str(error)) from error
    return await experiment_of(reading)
