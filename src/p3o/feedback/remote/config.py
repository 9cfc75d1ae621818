"""The settings of a reward service. They hold the name of the environment variable with the key, never a key."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from p3o.errors import P3OError
from p3o.feedback.http import check_address

InterfaceName = Literal["p3o", "classify", "pooling", "score"]


class RewardServiceConfig(BaseModel):
    """A reward model or function that is served elsewhere (docs/rewards_service.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    url: str = Field(description="Address of the server, such as http://localhost:8100.")
    interface: InterfaceName = Field(
        "p3o",
        description="Interface of the server: p3o (p3o serve-reward), or one of vLLM's: classify, pooling or score.",
    )
    model: str | None = Field(None, description="Name of the model at the server; null if the server has only one.")
    tokenizer: str | None = Field(
        None, description="Folder or hub name of the tokenizer: send token ids instead of text (classify, pooling)."
    )
    end: str = Field("", description="Text appended to each response when texts are sent, such as '</s>'.")
    api_key_env: str = Field("REWARD_API_KEY", description="Name of the environment variable that holds the key.")
    batch: int = Field(64, gt=0, description="Responses per request.")
    concurrency: int = Field(4, gt=0, le=256, description="Requests sent at the same time.")
    timeout: float = Field(60.0, gt=0, description="Seconds to wait for an answer to a request.")
    attempts: int = Field(6, gt=0, le=20, description="Attempts before a request counts as failed.")
    backoff: float = Field(
        1.0, ge=0, description="Seconds before the second attempt; doubled after each attempt, up to 60."
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="Additional fields of the request, sent unchanged."
    )

    @field_validator("url")
    @classmethod
    def plain(cls, url: str) -> str:
        """An address without a secret; vLLM has these paths beside /v1, not under it."""
        try:
            check_address(url, key="url", example="http://localhost:8100")
        except P3OError as error:
            raise ValueError(str(error).removeprefix("url: ")) from None
        return url.rstrip("/").removesuffix("/v1")
