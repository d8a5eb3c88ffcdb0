"""The rate of something over cases that were asked more than once: repeats of a case tell less than other cases."""

import numpy as np
import numpy.typing as npt

from libs.statistics.intervals import LEVEL, Estimate, wilson


def repeated_rate(sizes: npt.ArrayLike, totals: npt.ArrayLike, *, level: float = LEVEL) -> Estimate | None:
    """The rate of hits among all answers, from each case's number of answers and of hits; None without answers.

    Wilson's interval on the effective size n / d. The design effect d is the cluster-robust variance of the rate over
    that of independent answers (Korn and Graubard (1998), Survey Methodology 24, 193-201), taken with one case of hits
    and one of misses added that have not come yet, the remedy of Agresti and Caffo (2000), The American Statistician
    54, 280-288. Without it, cases that hit each time would count as if each repeat were a case of its own, and asking
    twenty cases ten times would prove as much as asking two hundred. d lies between 1 (every answer tells as much as a
    case) and the answers a case has, weighted by size (all answers of a case are alike). Asked once each, it is
    Wilson's interval itself. ValueError where a case has more hits than answers.
    """
    n, hits = np.asarray(sizes, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    if np.any(hits > n) or np.any(hits < 0):
        raise ValueError("a case has more hits than answers, or fewer than none")
    answers, found = float(n.sum()), float(hits.sum())
    if answers <= 0:
        return None
    effect = design_effect(n, hits)
    return wilson(found / effect, answers / effect, level=level)


def design_effect(sizes: npt.ArrayLike, totals: npt.ArrayLike) -> float:
    """How many answers tell as much as one of a case of its own, as in `repeated_rate`; 1 without answers."""
    n, hits = np.asarray(sizes, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    answers, found = float(n.sum()), float(hits.sum())
    if answers <= 0:
        return 1.0
    alike = float((n * n).sum()) / answers
    rate = (found + alike) / (answers + 2 * alike)
    unseen = alike * alike * (rate * rate + (1 - rate) ** 2)
    squares = float(((hits - n * rate) ** 2).sum()) + unseen
    independent = (answers + 2 * alike) * rate * (1 - rate)
    return min(alike, max(1.0, squares / independent))
