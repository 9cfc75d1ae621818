"""Settings of the rollouts: who writes the responses, and what is done when a server is lost or differs from the learner."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RolloutConfig(BaseModel):
    """Who writes the responses of a step: this process, or vLLM servers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["local", "vllm"] = Field(
        "local", description="local: the learner itself; vllm: the servers of urls."
    )
    urls: tuple[str, ...] = Field((), description="Of the vLLM servers, such as http://127.0.0.1:8000.")
    weights: Literal["gloo", "nccl", "disk", "lora"] = Field(
        "gloo", description="How weights reach the servers: gloo (CPU), nccl (GPU), disk, or the adapter alone (lora)."
    )
    address: str = Field(
        "127.0.0.1", description="Of this machine as the servers reach it, for gloo and nccl; nothing else listens."
    )
    push_dtype: Literal["bfloat16", "float16"] | None = Field(
        None,
        description="What weights are rounded to before they are sent or written: the servers' own dtype; null: as they rest.",
    )
    folder: str | None = Field(
        None, description="For disk and lora: a folder that the servers see too; null: rollouts/ in the run's folder."
    )
    in_flight: int = Field(16, gt=0, description="Prompts that a server works on at a time.")
    timeout: float = Field(300.0, gt=0, description="Seconds for one prompt's responses or one transfer of weights.")
    attempts: int = Field(8, gt=0, description="Times that a prompt is asked before the run ends.")
    check_every: float = Field(2.0, gt=0, description="Seconds between two looks at a server that is lost.")
    patience: float = Field(
        600.0, ge=0, description="Seconds to wait for a server to come back when none is left, before the run ends."
    )
    probe_tolerance: float = Field(
        1e-3,
        gt=0,
        description="Largest difference of a fixed text's log-probs after a push, nats; bfloat16 needs ~0.2.",
    )
    correction: Literal["truncate", "drop", "none"] = Field(
        "truncate",
        description="Of groups whose log-probs differ between server and learner: weigh them, drop them, or neither.",
    )
    weight_limit: float = Field(2.0, ge=1, description="C: the weight of a group is at most this (truncate).")
    drop_beyond: float = Field(
        3.0, gt=0, description="Drop groups whose log importance weight is larger than this in absolute value, nats."
    )
    api_key_env: str | None = Field(
        None, description="Name of the environment variable that holds the servers' key; null: none."
    )

    @model_validator(mode="after")
    def complete(self) -> "RolloutConfig":
        """Servers are named where they are needed, once each, and only there."""
        if self.engine == "vllm" and not self.urls:
            raise ValueError("engine vllm needs urls: the servers' addresses, such as [http://127.0.0.1:8000]")
        if self.engine == "local" and self.urls:
            raise ValueError("urls are for engine: vllm; name the engine or remove them")
        if self.push_dtype is not None and self.weights == "lora":
            raise ValueError("push_dtype: with weights: lora the adapter goes as it is; remove it")
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"urls: {url!r} must begin with http:// or https://")
            try:
                parts = urlsplit(url)
                there = bool(parts.hostname) and parts.port != 0
            except ValueError:  # a port that is no number
                there = False
            if not there:
                raise ValueError(f"urls: {url!r} is no address; write for example http://127.0.0.1:8000")
            if "@" in parts.netloc or parts.query:
                raise ValueError(
                    "urls: one holds a password or a query; name the key's variable as api_key_env instead"
                )
        if len({url.rstrip("/") for url in self.urls}) < len(self.urls):
            raise ValueError("urls: a server is named twice")
        return self
