"""Averages of the metrics of micro-batches and minibatches."""

from collections.abc import Mapping

from torch import Tensor

from p3o.algorithms.base import RESPONSE_MEANS
from p3o.distributed.world import world


def effective_sample_share(ratio_mean: float, ratio_mean_square: float) -> float:
    """(Σ w)² / (n Σ w²), in [1/n, 1]: the effective sample size of n importance weights w (Kish), over n.

    At 1 every response counts alike; at 0.1 a mean over them is about as noisy as one over a tenth of them.
    """
    return ratio_mean**2 / ratio_mean_square


class MetricsAverage:
    """Averages the metrics of micro-batches and minibatches; maxima stay maxima and counts are summed.

    The effective sample share is taken of the averaged moments, that is of all importance weights of the step's updates
    together: an average of shares would depend on how the batch was split for memory.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.weights: dict[str, float] = {}

    def add(self, metrics: Mapping[str, Tensor], weight: float, *, groups: float | None = None) -> None:
        """Take in the metrics of a micro-batch.

        Args:
            metrics: by name.
            weight: its share of what the loss of the minibatch is a mean over.
            groups: its share of the groups, for metrics that are means over responses; None: the same.
        """
        for name, value in metrics.items():
            number = value.item()
            share = groups if groups is not None and name in RESPONSE_MEANS else weight
            averaged = not name.endswith(("_max", "_clamped"))
            self._join(name, number * share if averaged else number, share)

    def result(self) -> dict[str, float]:
        """The averages over what all processes took in, and ``effective_sample_share`` where there were importance ratios."""
        whole = MetricsAverage()
        for told in world().gather({"sums": self.sums, "weights": self.weights}):
            for name, total in told["sums"].items():
                whole._join(name, total, told["weights"][name])
        averages = {name: total / whole.weights[name] for name, total in whole.sums.items()}
        if averages.get("ratio_mean_square", 0.0) > 0:
            averages["effective_sample_share"] = effective_sample_share(
                averages["ratio_mean"], averages.pop("ratio_mean_square")
            )
        return averages

    def _join(self, name: str, total: float, weight: float) -> None:
        """One more sum, maximum or count under this name."""
        if name.endswith("_max"):
            self.sums[name] = max(self.sums.get(name, total), total)
            self.weights[name] = 1.0
        elif name.endswith("_clamped"):
            self.sums[name] = self.sums.get(name, 0.0) + total
            self.weights[name] = 1.0
        else:
            self.sums[name] = self.sums.get(name, 0.0) + total
            self.weights[name] = self.weights.get(name, 0.0) + weight
