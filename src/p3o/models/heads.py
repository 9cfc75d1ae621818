"""Scalar heads: the critic of PPO, one value per response token."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from p3o.errors import P3OError
from p3o.models.language import accepted, first_line, joined
from p3o.models.tokens import PromptBatch, ResponseBatch


class Critic(nn.Module):
    """A transformer body with a linear head. The head starts at zero, so the first values are zero everywhere."""

    def __init__(self, body: PreTrainedModel) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_pretrained(cls, path: str, *, device: torch.device, dtype: torch.dtype = torch.float32) -> "Critic":
        """A critic on the body of a saved language model or reward model (the custom is the reward model's).

        Raises:
            P3OError: if the folder holds no such model.
        """
        try:
            body = AutoModel.from_pretrained(path, dtype=dtype)
        except (OSError, ValueError) as error:
            raise P3OError(f"critic {path!r}: cannot be loaded ({first_line(error)})") from error
        return cls(body).to(device).eval()

    def forward(self, prompts: PromptBatch, responses: ResponseBatch) -> Float[Tensor, "group response time"]:
        """V of the state in which each response token is chosen; meaningless on padding."""
        tokens, mask, positions = joined(prompts, responses)
        group, response, time = responses.tokens.shape
        arguments = {"position_ids": positions, "use_cache": False}
        hidden = self.body(
            input_ids=tokens, attention_mask=mask.long(), **accepted(self.body, arguments)
        ).last_hidden_state
        values: Tensor = self.head(hidden[:, -(time + 1) : -1]).squeeze(-1)
        return values.view(group, response, time).float()
