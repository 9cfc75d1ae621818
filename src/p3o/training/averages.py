"""Averages of the metrics of micro-batches and minibatches."""

from collections.abc import Mapping

from torch import Tensor


class MetricsAverage:
    """Averages the metrics of micro-batches and minibatches; maxima stay maxima and counts are summed."""

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
        """The averages."""
        return {name: total / self.weights[name] for name, total in self.sums.items()}
