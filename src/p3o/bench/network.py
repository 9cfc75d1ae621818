"""Many small multilayer perceptrons in one tensor program: every parameter carries a leading ``policy`` axis.

One hidden layer on one-hot inputs. The parameters of one network are a row of a ``[policy, parameter]`` matrix, so that one
optimiser steps all of them; two batched matrix products evaluate all of them.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu


@dataclass(frozen=True)
class BatchedNetwork:
    """The shape of the network; the parameters are passed to every call.

    Attributes:
        inputs: width of the input, a concatenation of one-hot codes.
        active: how many inputs are 1 at a time; initial weights are scaled for that number.
        outputs: width of the output.
        hidden: width of the hidden layer.
    """

    inputs: int
    active: int
    outputs: int
    hidden: int = 40

    @property
    def parameters(self) -> int:
        """Number of parameters of one network."""
        return self.hidden * (self.inputs + self.outputs)

    def initialise(self, normal: Float[Tensor, "policy parameter"]) -> Float[Tensor, "policy parameter"]:
        """Scale standard normal numbers so that hidden units and outputs have about unit variance."""
        first = self.inputs * self.hidden
        scale = torch.full((self.parameters,), math.sqrt(2.0 / self.hidden))
        scale[:first] = 1.0 / math.sqrt(self.active)
        return normal * scale

    def __call__(
        self, parameters: Float[Tensor, "policy parameter"], inputs: Float[Tensor, "policy row input"]
    ) -> Float[Tensor, "policy row output"]:
        """W₂ gelu(W₁ x); the inputs' one-hot codes make a bias redundant."""
        first = self.inputs * self.hidden
        lower = parameters[:, :first].reshape(-1, self.inputs, self.hidden)
        upper = parameters[:, first:].reshape(-1, self.hidden, self.outputs)
        return torch.bmm(gelu(torch.bmm(inputs.to(lower.dtype), lower)), upper)
