"""Taking a bad version back: guardrails of running experiments, looked at all the time, and the shares of their arms.

Every process does this. That a version is taken back once is Postgres' doing: the activation is only written where
nobody, neither a person nor another process, activated anything since the experiment that was judged. So a person's
word always stands. Nothing is ever promoted here.
"""

from collections.abc import Mapping, Sequence

import structlog
from prometheus_client import Counter
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.alerts import raise_alert
from libs.exposures.counts import ArmUnits, counted, unit_counts
from libs.exposures.guardrails import GuardrailState, arms_without, evaluate
from libs.llm.activations import activate
from libs.llm.experiments import Experiment
from libs.llm.in_force import Activation, InForce, arms_as_text
from libs.llm.prompts import PromptSource
from libs.statistics.sample_ratio import SampleRatio, sample_ratio

EVERY_S = 5.0
WHO = "guardrail"
LOOKS_PER_COUNT = 12
"""Rounds from one count of units to the next: to count them costs more than all guardrails do."""
FEWEST_UNITS = 50
GROWTH = 1.5
"""How many times as many units there must be until their shares are looked at again. The check is made for one look; at
so few, two dozen up to a million units, about one sound experiment of fifty is told of in its life."""

TAKEN_BACK = Counter(
    "lexi_jobs_versions_taken_back_total", "Versions that a guardrail took back, as seen by this process.", ["key"]
)

log = structlog.get_logger(__name__)


class Guardrails:
    """Looks at every running experiment. `prompts` says which run."""

    def __init__(self, engine: AsyncEngine, prompts: PromptSource) -> None:
        self._engine = engine
        self._prompts = prompts
        self._round = 0
        self._looked: dict[str, int] = {}

    async def step(self) -> None:
        """Take back what breaks its guardrails, and tell of shares that chance does not explain.

        Raises what the driver raises. A version that was taken back is in force nowhere once its activation is read,
        which each process does every two seconds.
        """
        now = self._prompts.now
        running = {key: found for key, found in now.in_force.items() if found.experiment is not None}
        for key, found in running.items():
            await self.take_back(key, found)
        if self._round % LOOKS_PER_COUNT == 0:
            for key, found in running.items():
                await self.compare_shares(key, found)
        self._round += 1

    async def take_back(self, key: str, found: InForce) -> Activation | None:
        """Judge one experiment; returns the activation that was written, None where there was no need or no right."""
        experiment = found.experiment
        if experiment is None:
            return None
        async with self._engine.begin() as connection:
            states = evaluate(experiment, await counted(connection, key, experiment))
            broken = [state for state in states if state.breached]
            if not broken:
                return None
            made = await self._activate(connection, key, found, experiment=experiment, broken=broken)
        gone = sorted({state.arm for state in broken})
        if made is None:
            log.info("guardrail_came_second", prompt_key=key, versions=gone, phase=experiment.phase)
            return None
        TAKEN_BACK.labels(key).inc()
        log.warning(
            "guardrail_took_back",
            prompt_key=key,
            versions=gone,
            active=made.version,
            arms=arms_as_text(made.arms),
            activation=made.id,
            reason=made.why,
        )
        return made

    async def _activate(
        self,
        connection: AsyncConnection,
        key: str,
        found: InForce,
        *,
        experiment: Experiment,
        broken: Sequence[GuardrailState],
    ) -> Activation | None:
        """Write the activation and its alert together, or neither where another activation came first."""
        gone = sorted({state.arm for state in broken})
        why = "; ".join(state.sentence for state in broken)
        made = await activate(
            connection,
            key=key,
            version=found.version,
            arms=arms_without(experiment.arms, gone, active=found.version),
            who=WHO,
            why=why,
            ground=found.ground,
            expected=None if found.activation is None else found.activation.id,
        )
        if made is not None:
            words = (
                f"Prompt {key}: version {', '.join(gone)} was taken back and {found.version} is given instead. {why}"
            )
            await raise_alert(connection, key=f"guardrail:{key}:{made.id}", kind="guardrail", text=words)
        return made

    async def compare_shares(self, key: str, found: InForce) -> None:
        """Tell the desk, once per phase and check, where the arms did not get the shares they were meant to get."""
        experiment = found.experiment
        if experiment is None:
            return
        async with self._engine.begin() as connection:
            counts = await unit_counts(connection, key, experiment.phase)
            units = sum(each.assigned for each in counts.values())
            if units < max(FEWEST_UNITS, self._looked.get(experiment.phase, 0)):
                return
            self._looked[experiment.phase] = int(units * GROWTH)
            for check, ratio in _ratios(counts, dict(experiment.arms)).items():
                if ratio is not None and ratio.alarm:
                    await _tell(connection, key, experiment, check=check, ratio=ratio)


def _ratios(counts: Mapping[str, ArmUnits], weights: Mapping[str, float]) -> dict[str, SampleRatio | None]:
    return {
        "assignment": sample_ratio({arm: each.assigned for arm, each in counts.items()}, weights),
        "outcome": sample_ratio({arm: each.settled for arm, each in counts.items()}, weights),
    }


async def _tell(
    connection: AsyncConnection, key: str, experiment: Experiment, *, check: str, ratio: SampleRatio
) -> None:
    words = (
        f"Prompt {key}: at {check} the arms of {experiment.phase} do not have the shares they were meant to have "
        f"(chi-square {ratio.chi_square:.1f}, p = {ratio.p_value:.2g}). Trust no comparison until it is known why."
    )
    log.error("sample_ratio_mismatch", prompt_key=key, phase=experiment.phase, check=check, p=ratio.p_value)
    await raise_alert(connection, key=f"sample_ratio:{key}:{experiment.phase}:{check}", kind="sample_ratio", text=words)
