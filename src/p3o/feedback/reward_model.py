"""A reward model: a transformers sequence classifier with one label, read at the last token.

It reads a prompt and a finished response, end of sequence included, in one and the same form in training and in RL.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from p3o.errors import P3OError
from p3o.models.language import first_line
from p3o.models.tokens import encode_prompts, encode_responses, pad_id, pad_right


def load_reward_model(path: str, *, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A sequence classifier with one label. On the folder of a language model its head is new and its body the saved one.

    Raises:
        P3OError: if it cannot be loaded or has more than one label.
    """
    try:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise P3OError(
            f"reward model {path!r}: cannot be loaded as a sequence classifier with one label ({first_line(error)})"
        ) from error
    return model.to(device).eval()


class RewardModel:
    """Scores text: the reward function ``(prompts, responses) -> list[float]`` of a reward model."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 64) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        # The classifier finds the last token by this id.
        model.config.pad_token_id = pad_id(tokenizer)

    def encode(self, prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
        """The ids that stand for each prompt with its finished response."""
        pairs = zip(encode_prompts(self.tokenizer, prompts), encode_responses(self.tokenizer, responses), strict=True)
        return [prompt + response for prompt, response in pairs]

    def forward(self, rows: Sequence[list[int]]) -> Float[Tensor, " row"]:
        """Scores of encoded rows, with their graph."""
        device = next(self.model.parameters()).device
        tokens, mask = pad_right(rows, pad_id(self.tokenizer))
        scores: Tensor = self.model(input_ids=tokens.to(device), attention_mask=mask.long().to(device)).logits
        return scores.squeeze(-1).float()

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """One score per response, in the units of Bradley–Terry log-odds; only differences on a prompt mean something."""
        rows = self.encode(prompts, responses)
        # Rows of like length share a batch: less padding. The order is restored on return.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            for i, score in zip(chosen, self.forward([rows[i] for i in chosen]).tolist(), strict=True):
                scores[i] = score
        return scores
