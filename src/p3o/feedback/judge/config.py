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
        description="Kind of judge: openai (any compatible endpoint), transformers, reward_model, reward_function or function."
    )
    model: str | None = Field(None, description="Model name at the endpoint, or a folder or hub name.")
    function: str | None = Field(None, description="module:function.")
    template: str = Field("helpfulness", description="Prompt template: tldr, helpfulness, or a jinja file of your own.")
    base_url: str | None = Field(
        None, description="Address of the endpoint, such as http://localhost:8000/v1; null: OpenAI's."
    )
    api_key_env: str = Field("OPENAI_API_KEY", description="Name of the environment variable that holds the key.")
    answer: AnswerForm = Field(
        "sentence",
        description="Answer asked of an endpoint: a sentence and the letter, or only the letter, read from its log-probs.",
    )
    contradictions: Contradictions = Field(
        "tie", description="If the two orders choose different responses: count a tie, or average the two answers."
    )
    temperature: float | None = Field(
        0.0, ge=0, description="Sampling temperature; null: not sent, for models that do not accept one."
    )
    max_tokens: int = Field(256, gt=0, description="Maximum length of an answer in tokens.")
    seed: int | None = Field(None, description="Random seed, for endpoints that support it.")
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="Additional fields of the request, sent unchanged."
    )
    concurrency: int = Field(8, gt=0, le=256, description="Requests sent at the same time.")
    timeout: float = Field(60.0, gt=0, description="Seconds to wait for an answer to a request.")
    attempts: int = Field(6, gt=0, le=20, description="Attempts before a question counts as failed.")
    backoff: float = Field(
        1.0, ge=0, description="Seconds before the second attempt; doubled after each attempt, up to 60."
    )
    give_up_after: int = Field(20, gt=0, description="Stop after this many failed questions in a row.")
    price_input: float | None = Field(None, ge=0, description="Price of a million input tokens.")
    price_output: float | None = Field(None, ge=0, description="Price of a million output tokens.")
    max_cost: float | None = Field(
        None, ge=0, description="Do not start, or stop, if the cost would exceed this; the cost of earlier runs counts."
    )
    ask_invalid_again: bool = Field(
        False, description="Ask again the questions to which an earlier run got no valid choice."
    )
    batch_size: int = Field(16, gt=0, description="Batch size of a local model.")
    device: str = Field("cpu", description="Device of a local model: cpu, cuda, cuda:1 or mps.")

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
