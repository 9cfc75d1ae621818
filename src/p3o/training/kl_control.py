"""A controller that steers β so that the policy's KL from the reference stays at a target.

Ziegler et al. 2019 (arXiv:1909.08593, Section 2.2): e = clip(KL/target − 1, −0.2, 0.2), β ← β (1 + K e), with K = 0.1.
"""

from dataclasses import dataclass

CLIP = 0.2


@dataclass
class KLController:
    """β and how it moves.

    Attributes:
        beta: the current weight of the KL.
        target: KL(policy ‖ reference) to hold, in nats per response.
        gain: K, the largest relative change of β per step is 0.2·K.
    """

    beta: float
    target: float
    gain: float = 0.1

    def update(self, kl: float) -> float:
        """The β of the next step, after a step whose samples had this mean KL (nats per response)."""
        error = min(max(kl / self.target - 1.0, -CLIP), CLIP)
        self.beta *= 1.0 + self.gain * error
        return self.beta
