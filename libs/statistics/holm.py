"""Several questions asked at once, and how much more each then has to show."""

from collections.abc import Mapping


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Each p value adjusted for having asked all of them, in the order given.

    The smallest of m counts m times, the next m - 1 times, and so on, none below one before it and none above 1.
    Calling those at or below alpha makes a single false call among all with a chance of at most alpha, however the
    questions hang together, and also where each p value holds at any time of looking. Source: S. Holm (1979),
    Scandinavian Journal of Statistics 6, 65-70.
    """
    adjusted: dict[str, float] = {}
    least = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda each: p_values[each])):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}
