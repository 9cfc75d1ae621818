"""The Bradley–Terry model of pairwise preferences: p(y_w ≻ y_l | x) = σ( r(y_w|x) − r(y_l|x) )."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from p3o.types import LossOutput


def bradley_terry_loss(chosen_rewards: Float[Tensor, " pair"], rejected_rewards: Float[Tensor, " pair"]) -> LossOutput:
    """− log σ( r(y_w|x) − r(y_l|x) ), mean over pairs: the loss of arXiv:2310.00212, Lemma 1.

    The authors' blog post prints it without the minus sign. Unchanged by r ← r + δ(x): nothing in the data fixes the reward's
    offset on a prompt. Metrics: ``accuracy``, the share of pairs ranked as labelled (a tie counts one half), and ``margin``,
    the mean reward difference.
    """
    gap = chosen_rewards - rejected_rewards
    ranked = (gap > 0).to(gap.dtype) + 0.5 * (gap == 0).to(gap.dtype)
    return LossOutput(loss=-logsigmoid(gap).mean(), metrics={"accuracy": ranked.mean(), "margin": gap.detach().mean()})
