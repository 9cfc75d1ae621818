"""The settings of a judge. They hold the name of the environment variable with the key, never a key."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from p3o.feedback.orders import Contradictions

Kind = Literal["openai", "transformers", "reward_model", "reward_function", "function"]
AnswerForm = Literal["sentence", "letter"]
LETTER_TOKENS = 4
"""Limit of an answer that is a letter."""

_NEEDS = {
    "openai": ("model", "the model's name at the endpoint"),
    "transformers": ("model", "a folder or hub name of a causal language model"),
    "reward_model": ("model", "a folder or hub name of a sequence classifier with one label"),
    "reward_function": ("function", "module:function of (prompts, responses) -> scores"),
    "function": ("function", "module:function of (prompts, responses_a, responses_b) -> preferences in [-1, 1]"),
}


class JudgeConfig(BaseModel):
    """Settings of a judge; those below ``template`` are for the kinds that read two texts side by side."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    kind: Kind = Field(
        description="openai (any compatible endpoint), transformers, reward_model, reward_function, function."
    )
    model: str | None = Field(None, description="Name at the endpoint, or a folder or hub name.")
    function: str | None = Field(None, description="module:function.")
    template: str = Field("helpfulness", description="tldr, helpfulness, or a file of your own (jinja).")
    base_url: str | None = Field(None, description="Of the endpoint, such as http://localhost:8000/v1; null: OpenAI's.")
    api_key_env: str = Field("OPENAI_API_KEY", description="Name of the environment variable that holds the key.")
    answer: AnswerForm = Field(
        "sentence",
        description="Of an endpoint: a sentence and the letter, or the letter alone, read from its log-probs.",
    )
    contradictions: Contradictions = Field(
        "tie", description="Of two orders that name different responses: tie, or the average of what they say."
    )
    temperature: float | None = Field(0.0, ge=0, description="Null: not sent, for models that take none.")
    max_tokens: int = Field(256, gt=0, description="Limit of an answer.")
    seed: int | None = Field(None, description="Sent to endpoints that know it.")
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="More fields of the request, sent as they are."
    )
    concurrency: int = Field(8, gt=0, le=256, description="Requests at a time.")
    timeout: float = Field(60.0, gt=0, description="Seconds until a request counts as lost.")
    attempts: int = Field(6, gt=0, le=20, description="Times that a question is sent before it counts as failed.")
    backoff: float = Field(1.0, ge=0, description="Seconds before the second attempt; doubled each time, up to 60.")
    give_up_after: int = Field(20, gt=0, description="Stop after so many questions in a row have failed.")
    price_input: float | None = Field(None, ge=0, description="Price of a million tokens read.")
    price_output: float | None = Field(None, ge=0, description="Price of a million tokens written.")
    max_cost: float | None = Field(
        None, ge=0, description="Refuse to start, or stop, beyond this cost; what earlier runs have spent on it counts."
    )
    ask_invalid_again: bool = Field(False, description="Ask again what an earlier run answered without a choice.")
    batch_size: int = Field(16, gt=0, description="Of a local model.")
    device: str = Field("cpu", description="Of a local model: cpu, cuda, cuda:1, mps.")

    @property
    def answer_tokens(self) -> int:
        """Limit of an answer in its form."""
        return min(self.max_tokens, LETTER_TOKENS) if self.answer == "letter" else self.max_tokens

    @model_validator(mode="after")
    def complete(self) -> "JudgeConfig":
        """What the kind needs is there, and a limit of cost has prices to be reckoned with."""
        name, meaning = _NEEDS[self.kind]
        if getattr(self, name) is None:
            raise ValueError(f"kind {self.kind} needs {name}: {meaning}")
        if self.max_cost is not None and (self.price_input is None or self.price_output is None):
            raise ValueError("max_cost needs price_input and price_output, the prices of a million tokens")
        return self
