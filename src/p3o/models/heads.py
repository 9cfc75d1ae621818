"""Scalar heads: the critic of PPO, one value per response token, read on the rows of a layout (``p3o.models.layouts``)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from p3o.models.adapters import LoraSettings, add_adapter, plain_model
from p3o.models.language import accepted, joined
from p3o.models.layouts import Layout
from p3o.models.loading import adapter_task, is_adapter, load_pretrained
from p3o.models.probe import LayoutChoice, Subject, Verdict, choose
from p3o.models.selection import Call
from p3o.models.tokens import GroupTokens, PromptBatch, ResponseBatch, collate_groups

HEADS = ("score", "classifier")
"""What transformers calls the head of a sequence classifier."""


class Critic(nn.Module):
    """A transformer body with a linear head. The head starts at zero, so the first values are zero everywhere."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        config: Any = plain_model(body).config
        weight = next(body.parameters())
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.head = nn.Linear(config.get_text_config().hidden_size, 1, device=weight.device, dtype=dtype)
        self.start_at_zero()

    def start_at_zero(self) -> None:
        """Let every value be zero."""
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        lora: LoraSettings | None = None,
        seed: int = 0,
        trust_remote_code: bool = False,
    ) -> "Critic":
        """A critic on the body of a saved language model or reward model (the custom is the reward model's).

        Args:
            path: folder or hub name. On an adapter the critic trains that adapter further, with its base frozen.
            device: where it computes.
            dtype: of the body's weights; the head's is float32 at least.
            lora: train a fresh adapter instead of the whole body.
            seed: of the fresh adapter.
            trust_remote_code: whether Python code in the model's repository may run.

        Raises:
            P3OError: if the folder holds no such model.
        """
        what = f"critic {path!r}"
        settings: dict[str, Any] = {"what": what, "dtype": dtype, "trust_remote_code": trust_remote_code}
        if is_adapter(path):
            # peft names an adapter's weights by the whole model that it was made on, head and all.
            if adapter_task(path, what) == "SEQ_CLS":
                whole = load_pretrained(
                    AutoModelForSequenceClassification, path, task="SEQ_CLS", new=HEADS, num_labels=1, **settings
                )
            else:
                whole = load_pretrained(AutoModelForCausalLM, path, task="CAUSAL_LM", **settings)
            inner: Any = plain_model(whole)
            body: nn.Module = inner.base_model
        else:
            body = load_pretrained(AutoModel, path, task="FEATURE_EXTRACTION", **settings)
            if lora is not None:
                body = add_adapter(body, lora, task="FEATURE_EXTRACTION", seed=seed)
        return cls(body.to(device)).eval()

    def forward(self, prompts: PromptBatch, responses: ResponseBatch) -> Float[Tensor, "group response time"]:
        """V of the state in which each response token is chosen, one row per response; meaningless on padding."""
        # A tensor of its own: FSDP hooks the backward pass onto what a module returns, and a view could lose the hook.
        return self._read(self._states(prompts, responses)).clone()

    def values(
        self, layout: Layout, groups: Sequence[GroupTokens], *, time: int, fill: int
    ) -> Float[Tensor, "group response time"]:
        """The same on the rows of a layout; 0 on padding."""

        def read(call: Call) -> Tensor:
            return self._read(call.run().last_hidden_state[call.selected])

        return layout.scalars(self.body, read, groups, time=time, fill=fill)

    def choose_layout(
        self, *, choice: LayoutChoice = "auto", responses: int = 2, context: int | None = None
    ) -> Verdict:
        """The first layout that agrees with ``forward`` on this body, as ``p3o.models.probe.choose_layout`` does it.

        A head that is still zero agrees with everything, so the probe looks along a random direction of the body's states.

        Raises:
            P3OError: if the layout that was asked for, or none, agrees.
        """
        device, dtype = self.head.weight.device, self.head.weight.dtype
        direction = torch.randn(self.head.in_features, generator=torch.Generator().manual_seed(0)).to(device, dtype)

        def plain(groups: Sequence[GroupTokens]) -> Tensor:
            time = max(len(response) for group in groups for response in group.responses)
            prompts, responses = collate_groups(groups, 0, time=time)
            states = self._states(prompts.to(device), responses.to(device)).to(dtype)
            return (states @ direction)[responses.mask.to(device)]

        def laid_out(layout: Layout, groups: Sequence[GroupTokens]) -> Tensor:
            time = max(len(response) for group in groups for response in group.responses)

            def read(call: Call) -> Tensor:
                states: Tensor = call.run().last_hidden_state[call.selected]
                return states.to(dtype) @ direction

            values = layout.scalars(self.body, read, groups, time=time, fill=0)
            return values[collate_groups(groups, 0, time=time)[1].mask.to(device)]

        subject = Subject(self.body, plain, laid_out, what="critic", off="values are {:.2g} off")
        return choose(subject, choice=choice, responses=responses, context=context)

    def _states(self, prompts: PromptBatch, responses: ResponseBatch) -> Float[Tensor, "group response time hidden"]:
        """What the body makes of every position that a response token is chosen in."""
        tokens, mask, positions = joined(prompts, responses)
        group, response, time = responses.tokens.shape
        arguments = {"position_ids": positions, "use_cache": False}
        hidden: Tensor = self.body(
            input_ids=tokens, attention_mask=mask.long(), **accepted(self.body, arguments)
        ).last_hidden_state
        return hidden[:, -(time + 1) : -1].view(group, response, time, -1)

    def _read(self, states: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
        """The head, in its own dtype; the values in float32 at least."""
        values: Tensor = self.head(states.to(self.head.weight.dtype)).squeeze(-1)
        return values.to(torch.promote_types(values.dtype, torch.float32))
