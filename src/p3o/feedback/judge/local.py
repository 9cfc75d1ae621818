"""Asks a causal language model on this machine for the letter: which of " A" and " B" is the likelier next token.

The question is put in the model's chat template if it has one, and the answer is begun with "Preferred:", so there is no
sentence of comparison, no sampling and no invalid answer. A question that does not fit into the model is a failure, told and
counted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from p3o.errors import P3OError
from p3o.feedback.judge.prompts import ANSWER_START
from p3o.feedback.judge.sidebyside import Keep
from p3o.feedback.judge.verdicts import Answer
from p3o.models.language import accepted, load_language_model, load_tokenizer
from p3o.models.tokens import encode_prompts, pad_id, pad_left


class LocalAsker:
    """An asker of ``p3o.feedback.judge.sidebyside``.

    Args:
        model, tokenizer: of a causal language model.
        identity: what the answers are kept under; ``load_local_asker`` makes it from the files.
        batch_size: questions per forward pass.

    Raises:
        P3OError: if the tokenizer has no tokens of their own for the two letters.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, identity: str, batch_size: int = 16
    ) -> None:
        self.model, self.tokenizer, self.identity, self.batch_size = model, tokenizer, identity, batch_size
        self.parameters: Mapping[str, Any] = {"answer": "letter log-odds"}
        self._letters = _letter_ids(tokenizer)
        self._limit = min(
            int(tokenizer.model_max_length), int(getattr(model.config, "max_position_embeddings", None) or 2**62)
        )

    @torch.no_grad()
    def ask(self, questions: Sequence[str], keep: Keep) -> None:
        """As ``Asker.ask``; questions of like length share a batch."""
        rows = encode_prompts(self.tokenizer, [self._rendered(question) for question in questions])
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        fitting = [index for index in order if len(rows[index]) <= self._limit]
        for index in order[len(fitting) :]:
            keep(index, Answer(None, error=f"{len(rows[index])} tokens, more than the model's {self._limit}"))
        for start in range(0, len(fitting), self.batch_size):
            chosen = fitting[start : start + self.batch_size]
            for index, answer in zip(chosen, self._letter([rows[index] for index in chosen]), strict=True):
                keep(index, answer)

    def _letter(self, rows: list[list[int]]) -> list[Answer]:
        batch = pad_left(rows, pad_id(self.tokenizer)).to(next(self.model.parameters()).device)
        positions = (batch.mask.cumsum(-1) - 1).clamp(min=0)
        arguments = accepted(self.model, {"position_ids": positions, "logits_to_keep": 1, "use_cache": False})
        logits = self.model(input_ids=batch.tokens, attention_mask=batch.mask.long(), **arguments).logits
        logprobs = logits[:, -1].float().log_softmax(-1)[:, self._letters].tolist()
        return [
            Answer(
                "first" if a >= b else "second",
                f"log p(A) {a:.4f}, log p(B) {b:.4f}",
                input_tokens=len(row),
                lean=a - b,
            )
            for (a, b), row in zip(logprobs, rows, strict=True)
        ]

    def _rendered(self, question: str) -> str:
        if self.tokenizer.chat_template is None:
            return f"{question.rstrip()}\n\n{ANSWER_START}"
        messages = [{"role": "user", "content": question}]
        start = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return f"{start}{ANSWER_START}"


def load_local_asker(path: str, *, device: str = "cpu", batch_size: int = 16) -> LocalAsker:
    """The asker of a folder or hub name.

    Raises:
        P3OError: if it cannot be loaded.
    """
    model = load_language_model(path, device=torch.device(device))
    return LocalAsker(model, load_tokenizer(path), identity=_identity(path), batch_size=batch_size)


def _identity(path: str) -> str:
    """The name, and for a folder the sizes and times of its weights: trained anew, it is another judge."""
    weights = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weights]
    return f"{path} {stats}" if stats else path


def _letter_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that stand for the two letters after "Preferred:"."""
    start, a, b = (
        tokenizer(f"{ANSWER_START}{ending}", add_special_tokens=False)["input_ids"] for ending in ("", " A", " B")
    )
    if a[:-1] != start or b[:-1] != start or a == b:
        raise P3OError("this tokenizer has no single tokens for ' A' and ' B'; use another model as judge")
    return [a[-1], b[-1]]
