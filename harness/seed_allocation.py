"""Which cells of further seeds narrow the answer most for what they cost: a pure function."""

from collections.abc import Callable, Mapping

from fewscan.harness.report.comparison import log_weights

TINY = 1e-9
Price = Callable[[Mapping[int, int], int], float]
"""(label count → seeds by now, a label count) → what one more seed there costs."""


def grown(seeds: Mapping[int, int], budget: float, price: Price, most: int) -> dict[int, int]:
    """Label count → seeds, with those added that narrow the area's interval most for their cost.

    `seeds`: of an arm and its reference by now. Nothing is added that the budget does not pay. A
    cell with weight w in the area (`log_weights`) and n seeds has a part w² σ² / n of its variance,
    from which one more seed takes w² σ² / (n (n + 1)). σ is taken to be the same at all counts:
    estimates from few seeds would lead away from cells that happen to agree, and what is left would
    seem better known than it is.
    """
    found = dict(sorted(seeds.items()))
    weights = dict(zip(found, log_weights([*found]).tolist(), strict=True))

    def gain(count: int) -> float:
        n = found[count]
        cost = max(price(found, count), TINY)  # what there is already costs nothing
        return float(weights[count]) ** 2 / (n * (n + 1)) / cost

    while some := [count for count in found if found[count] < most]:
        best = max(some, key=gain)
        budget -= price(found, best)
        if budget < 0:
            break
        found[best] += 1
    return found
