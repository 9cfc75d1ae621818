"""Averages of the metrics of micro-batches and minibatches."""

from collections.abc import Mapping

from torch import Tensor


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

    def add(self, metrics: Mapping[str, Tensor], weight: float) -> None:
        """Take in the metrics of a micro-batch with its share of the minibatch."""
        for name, value in metrics.items():
            number = value.item()
            if name.endswith("_max"):
                self.sums[name] = max(self.sums.get(name, number), number)
                self.weights[name] = 1.0
            elif name.endswith("_clamped"):
                self.sums[name] = self.sums.get(name, 0.0) + number
                self.weights[name] = 1.0
            else:
                self.sums[name] = self.sums.get(name, 0.0) + number * weight
                self.weights[name] = self.weights.get(name, 0.0) + weight

    def result(self) -> dict[str, float]:
        """The averages, and ``effective_sample_share`` where there were importance ratios."""
        averages = {name: total / self.weights[name] for name, total in self.sums.items()}
        if averages.get("ratio_mean_square", 0.0) > 0:
            averages["effective_sample_share"] = effective_sample_share(
                averages["ratio_mean"], averages.pop("ratio_mean_square")
            )
        return averages
