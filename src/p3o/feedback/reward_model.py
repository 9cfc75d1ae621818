"""A reward model: a transformers sequence classifier with one label, read at the last token that is not padding.

It reads a prompt and a finished response in one and the same form in training and in RL, by its own tokenizer, whichever the
policy's is. There are three forms:

- text: prompt, response and end of sequence, one after the other. So do TRL's reward models on plain text; TRL itself leaves
  the end of sequence out when it scores, here it is always there.
- conversation: the messages behind the prompt and the answer, by the reward model's own chat template and without any token
  that the template does not write.
- pair: ``tokenizer(prompt, response)``, two segments with the tokenizer's separators, as encoders (BERT, DeBERTa) want it.

Responses to one prompt share the beginning of their rows, whichever form and tokenizer: a causal model reads it once
(``p3o.models.scores``) where a probe finds that this gives the scores of the classifier's own forward.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from p3o.distributed.sharding import is_sharded
from p3o.errors import P3OError
from p3o.feedback.conversations import Conversations, render_conversation
from p3o.models.adapters import plain_model
from p3o.models.heads import HEADS
from p3o.models.language import accepted
from p3o.models.layouts import LAYOUTS, Layout, LayoutName, Padded, device_of
from p3o.models.loading import adapter_task, is_adapter, load_pretrained
from p3o.models.probe import LayoutChoice, Subject, Verdict, first_right
from p3o.models.scores import group_scores, numbered_positions, part_read, score_head, shared_part
from p3o.models.selection import full_precision
from p3o.models.tokens import GroupTokens, encode_prompts, encode_responses, end_id, pad_right

Form = Literal["text", "pair"]

MOST_RESPONSES = 8
"""Of one prompt that are read together: the mask of a longer row would hide most of what its attention computes."""


def load_reward_model(
    path: str,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    new_head: bool = True,
    trust_remote_code: bool = False,
) -> nn.Module:
    """A sequence classifier with one label, to train or to score with.

    Args:
        path: folder or hub name. On the folder of a language model its head is new and its body the saved one; on an adapter
            of a language model, it goes on with that adapter.
        device: where it computes.
        dtype: of its weights.
        new_head: False refuses a language model: the scores of a head that has learned nothing are noise.
        trust_remote_code: whether Python code in the model's repository may run.

    Raises:
        P3OError: if it cannot be loaded, has more than one label, or no head where it needs one.
    """
    what = f"reward model {path!r}"
    adapter = is_adapter(path)
    if not adapter:
        _check_labels(path, what, trust_remote_code=trust_remote_code)
    elif not new_head and adapter_task(path, what) == "CAUSAL_LM":
        raise P3OError(
            f"{what}: an adapter of a language model, without a head for scores; train a reward model with `p3o reward`"
        )
    model = load_pretrained(
        AutoModelForSequenceClassification,
        path,
        what=what,
        task="SEQ_CLS",
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        # The head of a classifier's adapter is saved with it and not with the base.
        new=HEADS if new_head or adapter else (),
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
        layout: of rows that share a prompt: shared, split, padded, or the first that is right for the model.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 64,
        conversations: Conversations | None = None,
        form: Form = "text",
        layout: LayoutChoice = "auto",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.conversations: Conversations = conversations or {}
        self.form = form
        self.choice: LayoutChoice = layout
        config: Any = plain_model(model).config
        self.fill = padding_id(tokenizer, config)
        # The classifier finds the last token by this id.
        config.get_text_config().pad_token_id = self.fill
        # Learned positions end; rotary ones only grow worse.
        self.longest: int | None = numbered_positions(model) or getattr(config, "max_position_embeddings", None)

    def encode(self, prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
        """The ids that stand for each prompt with its finished response.

        Raises:
            P3OError: if the chat template refuses a conversation.
        """
        return encode_for_reward(self.tokenizer, prompts, responses, conversations=self.conversations, form=self.form)

    def encode_pairs(self, pairs: Sequence[tuple[str, str, str]]) -> list[list[list[int]]]:
        """The two rows of each (prompt, chosen, rejected).

        Raises:
            P3OError: as ``encode``, or if a row is longer than the model can read.
        """
        prompts = [prompt for prompt, _, _ in pairs]
        rows = self.encode([*prompts, *prompts], [chosen for _, chosen, _ in pairs] + [worse for _, _, worse in pairs])
        if rows:
            self._check_lengths(rows)
        return [list(pair) for pair in zip(rows[: len(pairs)], rows[len(pairs) :], strict=True)]

    def forward(self, rows: Sequence[list[int]]) -> Float[Tensor, " row"]:
        """Scores of encoded rows, with their graph.

        Raises:
            P3OError: if a row is longer than the model can read.
        """
        self._check_lengths(rows)
        device = device_of(self.model)
        tokens, mask = pad_right(rows, self.fill)
        settings = accepted(self.model, {"use_cache": False})
        scores: Tensor = self.model(
            input_ids=tokens.to(device), attention_mask=mask.long().to(device), **settings
        ).logits
        return full_precision(scores.squeeze(-1))

    def forward_groups(self, groups: Sequence[Sequence[list[int]]]) -> Float[Tensor, " row"]:
        """Scores of the encoded rows of each prompt, group by group, with their graph; what a group shares is read once.

        Raises:
            P3OError: if a row is longer than the model can read.
        """
        rows = [row for group in groups for row in group]
        layout = self.layout if any(len(group) > 1 for group in groups) else None
        if layout is None:
            return self.forward(rows)
        self._check_lengths(rows)
        numbers = torch.arange(len(rows)).split([len(group) for group in groups])
        joined = [shared_part(group, fill=self.fill) for group in groups]
        alone = [i for i, group in enumerate(joined) if group is None]
        parts, order = [], [numbers[i] for i in alone]
        if alone:
            parts.append(self.forward([row for i in alone for row in groups[i]]))
        for responses in sorted({len(group.responses) for group in joined if group is not None}):
            chosen = {i: group for i, group in enumerate(joined) if group and len(group.responses) == responses}
            parts.append(group_scores(self.model, layout, list(chosen.values()), fill=self.fill).flatten())
            order += [numbers[i] for i in chosen]
        return torch.cat(parts)[torch.cat(order).argsort().to(parts[0].device)]

    def reads_together(self, group: Sequence[list[int]]) -> bool:
        """Whether ``forward_groups`` reads the rows of this group together; groups that are alike in this take one forward pass
        for all, where the layout is not split."""
        return self.layout is not None and shared_part(group, fill=self.fill) is not None

    @property
    def layout(self) -> Layout | None:
        """How rows that share a prompt are laid out; None: each by itself, through the model's own forward."""
        return self.verdict.layout if isinstance(self.verdict, Verdict) else None

    @cached_property
    def verdict(self) -> Verdict | dict[LayoutName, str]:
        """The layout that was chosen, or what speaks against each that was tried. The first look at it probes the model.

        Raises:
            P3OError: if the layout that was asked for is wrong for the model.
        """
        if self.choice == "padded":
            return {}
        wanted: list[LayoutName] = [name for name in LAYOUTS if name != "padded" and self.choice in ("auto", name)]
        refused: dict[LayoutName, str] = {}
        if is_sharded(self.model) and "split" in wanted:
            # One forward or two, as the responses are: ranks could fall out of step.
            wanted.remove("split")
            refused["split"] = "processes that share weights must make the same number of passes"
        verdict: Verdict | dict[LayoutName, str] = refused | dict.fromkeys(
            wanted, "the model has no head of a known name"
        )
        if score_head(self.model) is not None and wanted:

            def rows(group: GroupTokens) -> list[list[int]]:
                return [group.prompt + response for response in group.responses]

            def plain(groups: Sequence[GroupTokens]) -> Tensor:
                return self.forward([row for group in groups for row in rows(group)])

            def laid_out(layout: Layout, groups: Sequence[GroupTokens]) -> Tensor:
                shared = [shared_part(rows(group), fill=self.fill) for group in groups]
                joined = [group for group in shared if group is not None]
                return group_scores(self.model, layout, joined, fill=self.fill).flatten()

            subject = Subject(self.model, plain, laid_out, off="scores are {:.2g} off")
            verdict = first_right(subject, wanted, responses=3, context=None, ending=[self.fill])
            if isinstance(verdict, dict):
                verdict = verdict | refused
        if self.choice != "auto" and not isinstance(verdict, Verdict):
            raise P3OError(
                f"layout {self.choice}: wrong for this reward model ({verdict[self.choice]}); use layout auto"
            )
        return verdict

    def __str__(self) -> str:
        if isinstance(self.verdict, Verdict):
            return f"reward model: {self.verdict}"
        reasons = "".join(f"; not {name}: {reason}" for name, reason in self.verdict.items())
        return f"reward model: layout padded ({Padded.words}){reasons}"

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """One score per response, in the units of Bradley–Terry log-odds; only differences on a prompt mean something."""
        rows = self.encode(prompts, responses)
        scores = [0.0] * len(rows)
        for batch in self._batches(prompts, [len(row) for row in rows]):
            found = self.forward_groups([[rows[i] for i in group] for group in batch]).tolist()
            for i, score in zip((i for group in batch for i in group), found, strict=True):
                scores[i] = score
        return scores

    def _batches(self, prompts: Sequence[str], lengths: Sequence[int]) -> list[list[list[int]]]:
        """Indices of rows by prompt, prompts with rows of like length together: less padding."""
        by_prompt: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            by_prompt.setdefault(prompt, []).append(i)
        most = min(MOST_RESPONSES, self.batch_size)
        if len(by_prompt) == len(prompts) or self.layout is None:
            most = 1
        groups = [rows[i : i + most] for rows in by_prompt.values() for i in range(0, len(rows), most)]
        batches: list[list[list[int]]] = []
        count = self.batch_size
        for group in sorted(groups, key=lambda group: max(lengths[i] for i in group)):
            if count + len(group) > self.batch_size:
                batches.append([])
                count = 0
            batches[-1].append(group)
            count += len(group)
        return batches

    def _check_lengths(self, rows: Sequence[list[int]]) -> None:
        longest = max(map(len, rows))
        if self.longest is not None and longest > self.longest:
            raise P3OError(
                f"reward model: a prompt with its response has {longest} of its tokens, but it can read only "
                f"{self.longest}; shorten the prompts, lower rl.training.max_new_tokens, or use another reward model"
            )


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


def encode_for_server(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    conversations: Conversations,
    fill: int | None,
) -> list[list[int]]:
    """The ids for a server that reads the score at the last token of a row, as vLLM does, whatever that token is.

    A classifier of transformers passes over its padding id at the end of a row, which may be the end of sequence
    (:func:`padding_id`). Without these tokens both read the same place.

    Args:
        fill: the classifier's padding id; None if nobody knows it.
    """
    rows = encode_for_reward(tokenizer, prompts, responses, conversations=conversations)
    return rows if fill is None else [list(part_read(row, fill=fill)) for row in rows]


def _encode_texts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str], form: Form
) -> list[list[int]]:
    if form == "pair" and prompts:
        pairs: list[list[int]] = tokenizer(list(prompts), list(responses))["input_ids"]
        return pairs
    whole = zip(encode_prompts(tokenizer, prompts), encode_responses(tokenizer, responses), strict=True)
    return [prompt + response for prompt, response in whole]


def padding_id(tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
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
        raise P3OError(f"{what}: a classifier with {config.num_labels} labels; a reward model must have exactly one")
