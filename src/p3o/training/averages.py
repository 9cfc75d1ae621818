"""Averages of the metrics of micro-batches and minibatches."""

from collections.abc import Mapping

from torch import Tensor

from p3o.algorithms.base import RESPONSE_MEANS
from p3o.distributed.world import world
from p3o.functional.devices import numbers


def effective_sample_share(ratio_mean: float, ratio_mean_square: float) -> float:
    """(Σ w)² / (n Σ w²), in [1/n, 1]: the effective sample size of n importance weights w (Kish), over n.

    At 1 every response counts alike; at 0.1 a mean over them is about as noisy as one over a tenth of them.
    """
    return ratio_mean**2 / ratio_mean_square


def explained_variance(error_mean_square: float, target_mean: float, target_mean_square: float) -> float:
    """1 − E(v − G)² / Var G: how much of the variance of the targets G the values v account for; at most 1, and 0 for the best
    constant."""
    return 1.0 - error_mean_square / max(target_mean_square - target_mean**2, 1e-8)


class MetricsAverage:
    """Averages the metrics of micro-batches and minibatches; maxima stay maxima and counts are summed.

    What is a quotient or a root of means (effective sample share, explained variance, residual) is taken of the averaged
    moments, that is of everything that the step's updates saw together: an average of quotients would depend on how
    the batch was split for memory.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self._unread: list[tuple[str, Tensor, float]] = []

    def add(self, metrics: Mapping[str, Tensor], weight: float, *, groups: float | None = None) -> None:
        """Take in the metrics of a micro-batch. They are read when this average is, all at once: the next micro-batch need not
        wait until a GPU has come so far.

        Args:
            metrics: by name.
            weight: its share of what the loss of the minibatch is a mean over.
            groups: its share of the groups, for metrics that are means over responses; None: the same.
        """
        for name, value in metrics.items():
            share = groups if groups is not None and name in RESPONSE_MEANS else weight
            self._unread.append((name, value, share))

    def take(self, other: "MetricsAverage") -> None:
        """Take in what another average of this process has taken in."""
        other.read()
        for name, total in other.sums.items():
            self._join(name, total, other.weights[name])

    def result(self) -> dict[str, float]:
        """The averages over what all processes took in, with what follows from the moments in the place of these."""
        self.read()
        whole = MetricsAverage()
        for told in world().gather({"sums": self.sums, "weights": self.weights}):
            part = MetricsAverage()
            part.sums, part.weights = told["sums"], told["weights"]
            whole.take(part)
        averages = {name: total / whole.weights[name] for name, total in whole.sums.items()}
        if averages.get("ratio_mean_square", 0.0) > 0:
            averages["effective_sample_share"] = effective_sample_share(
                averages["ratio_mean"], averages.pop("ratio_mean_square")
            )
        if "value_error_mean_square" in averages:
            averages["explained_variance"] = explained_variance(
                *(averages.pop(name) for name in ("value_error_mean_square", "return_mean", "return_mean_square"))
            )
        if "residual_mean_square" in averages:
            averages["residual"] = averages.pop("residual_mean_square") ** 0.5
        return averages

    def read(self) -> None:
        """Bring what has been taken in from the device."""
        unread, self._unread = self._unread, []
        for (name, _, share), number in zip(unread, numbers([value for _, value, _ in unread]), strict=True):
            averaged = not name.endswith(("_max", "_clamped"))
            self._join(name, number * share if averaged else number, share)

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
