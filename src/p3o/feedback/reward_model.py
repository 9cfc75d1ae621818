"""A reward model: a transformers sequence classifier with one label, read at the last token that is not padding.

It reads a prompt and a finished response in one and the same form in training and in RL, by its own tokenizer, whichever the
policy's is. There are three forms:

- text: prompt, response and end of sequence, one after the other. So do TRL's reward models on plain text; TRL itself leaves
  the end of sequence out when it scores, here it is always there.
- conversation: the messages behind the prompt and the answer, by the reward model's own chat template and without any token
  that the template does not write.
- pair: ``tokenizer(prompt, response)``, two segments with the tokenizer's separators, as encoders (BERT, DeBERTa) want it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from p3o.errors import P3OError
from p3o.feedback.conversations import Conversations, render_conversation
from p3o.models.adapters import plain_model
from p3o.models.heads import HEADS
from p3o.models.language import accepted
from p3o.models.loading import is_adapter, load_pretrained
from p3o.models.tokens import encode_prompts, encode_responses, end_id, pad_right

Form = Literal["text", "pair"]


def load_reward_model(
    path: str, *, device: torch.device, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> nn.Module:
    """A sequence classifier with one label. On the folder of a language model its head is new and its body the saved one; on
    an adapter of a language model, it goes on with that adapter.

    Raises:
        P3OError: if it cannot be loaded or has more than one label.
    """
    what = f"reward model {path!r}"
    if not is_adapter(path):
        _check_labels(path, what, trust_remote_code=trust_remote_code)
    model = load_pretrained(
        AutoModelForSequenceClassification,
        path,
        what=what,
        task="SEQ_CLS",
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        new=HEADS,
        num_labels=1,
    )
    return model.to(device)


class RewardModel:
    """Scores text: the reward function ``(prompts, responses) -> list[float]`` of a reward model.

    Args:
        model: a sequence classifier with one label, with or without an adapter.
        tokenizer: the reward model's own.
        batch_size: rows per forward pass when scoring.
        conversations: the messages behind the policy's rendered prompts. A prompt that is in it is read as a conversation
            if the tokenizer has a chat template, and as text if it has none.
        form: how all other prompts are read.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 64,
        conversations: Conversations | None = None,
        form: Form = "text",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.conversations: Conversations = conversations or {}
        self.form = form
        config: Any = plain_model(model).config
        self.fill = _padding(tokenizer, config)
        # The classifier finds the last token by this id.
        config.get_text_config().pad_token_id = self.fill
        # Learned positions end; rotary ones only grow worse.
        self.longest: int | None = getattr(config, "max_position_embeddings", None)

    def encode(self, prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
        """The ids that stand for each prompt with its finished response.

        Raises:
            P3OError: if the chat template refuses a conversation.
        """
        return encode_for_reward(self.tokenizer, prompts, responses, conversations=self.conversations, form=self.form)

    def forward(self, rows: Sequence[list[int]]) -> Float[Tensor, " row"]:
        """Scores of encoded rows, with their graph.

        Raises:
            P3OError: if a row is longer than the model can read.
        """
        longest = max(map(len, rows))
        if self.longest is not None and longest > self.longest:
            raise P3OError(
                f"reward model: a prompt with its response takes {longest} of its tokens and it reads {self.longest} at most; "
                "shorten the prompts, lower rl.training.max_new_tokens, or use another reward model"
            )
        device = next(self.model.parameters()).device
        tokens, mask = pad_right(rows, self.fill)
        settings = accepted(self.model, {"use_cache": False})
        scores: Tensor = self.model(
            input_ids=tokens.to(device), attention_mask=mask.long().to(device), **settings
        ).logits
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


def encode_for_reward(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    conversations: Conversations,
    form: Form = "text",
) -> list[list[int]]:
    """The ids that stand for each prompt with its finished response, as of ``RewardModel.encode``."""
    talks = [conversations.get(prompt) if tokenizer.chat_template else None for prompt in prompts]
    rendered = [
        render_conversation(messages, response, tokenizer)
        for messages, response in zip(talks, responses, strict=True)
        if messages is not None
    ]
    plain = [i for i, messages in enumerate(talks) if messages is None]
    spoken = iter(tokenizer(rendered, add_special_tokens=False)["input_ids"] if rendered else [])
    texts = iter(_encode_texts(tokenizer, [prompts[i] for i in plain], [responses[i] for i in plain], form))
    return [next(texts) if messages is None else next(spoken) for messages in talks]


def _encode_texts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str], form: Form
) -> list[list[int]]:
    if form == "pair" and prompts:
        pairs: list[list[int]] = tokenizer(list(prompts), list(responses))["input_ids"]
        return pairs
    whole = zip(encode_prompts(tokenizer, prompts), encode_responses(tokenizer, responses), strict=True)
    return [prompt + response for prompt, response in whole]


def _padding(tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
    """The id of padding: the tokenizer's, else the one that the model was trained with, else the end of sequence.

    Where padding and end of sequence are one id, a classifier reads its score at the token before the end, in training as in
    RL; so do TRL's.
    """
    for known in (tokenizer.pad_token_id, config.get_text_config().pad_token_id):
        if known is not None:
            return int(known)
    return end_id(tokenizer)


def _check_labels(path: str, what: str, *, trust_remote_code: bool) -> None:
    """Stop at a classifier with several labels. A language model's configuration has a default of two that means nothing."""
    try:
        config: Any = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        return  # loading says what is wrong
    trained = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    if trained and config.num_labels != 1:
        raise P3OError(
            f"{what}: a classifier with {config.num_labels} labels; a reward model has one, whose score is the reward"
        )
