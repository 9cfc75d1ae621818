"""Memory, traffic and time of one step of RL on a cluster, by formulas; ``docs/scaling_plan.md`` derives them.

The learner is sharded over its ranks by FSDP2: float32 weights, gradients and moments in shards, layers gathered in bfloat16
for each pass. Rollouts are vLLM servers of as many GPUs as the weights need, in bfloat16. Nothing here was measured.
"""

import math
from dataclasses import dataclass, field

from p3o.bench.plan_shapes import BF16, FP32, Shape, Work, rows_of


@dataclass(frozen=True)
class Assumptions:
    """Every number that does not follow from shapes. Rates are of one H100 SXM as its data sheet has them, per direction.

    The shares are assumptions: what good engines are known to reach, not what p3o was measured to reach.
    """

    peak: int | float = 989e12
    """Dense bfloat16 operations per second."""
    memory: int | float = 80e9
    """Bytes."""
    bandwidth: int | float = 3.35e12
    """Bytes of memory per second."""
    node_link: int | float = 450e9
    """Bytes per second of a GPU to others of its node (NVLink)."""
    network: int | float = 50e9
    """Bytes per second of a GPU's own network card (400 Gbit/s)."""
    per_node: int = 8
    """GPUs."""
    training_share: int | float = 0.40
    """Of the peak, in passes of the learner."""
    prefill_share: int | float = 0.50
    """Of the peak, in prefills and in large decoding batches."""
    bandwidth_share: int | float = 0.60
    """Of the memory's bandwidth, in decoding."""
    link_share: int | float = 0.70
    """Of a link, in collectives."""
    host_copy: int | float = 10e9
    """Bytes per second between a GPU and its host's memory, as it comes (pageable)."""
    usable: int | float = 0.90
    """Of a GPU's memory."""
    decode_overhead: int | float = 3e-3
    """Seconds of a decoding step that no rate explains: launches, scheduling, sampling."""
    runtime: int | float = 4e9
    """Bytes that a process takes before any tensor: CUDA, NCCL, fragmentation."""
    head_tokens: int = 2048
    """Positions whose logits are there at a time."""
    micro_batch_tokens: int = 16384
    """Of a pass at most, except that a group is never split."""


@dataclass(frozen=True)
class Method:
    """An algorithm as far as it costs something.

    Attributes:
        shared: the prompt once per group.
        critic: as large as the policy, trained.
        whole_groups: on one rank; otherwise responses go anywhere.
        lora: rank of adapters; 0 trains all weights.
        reward_model: as large as the policy, frozen, whole on each of the learner's ranks.
        recompute: activations again in the backward pass.
    """

    name: str
    shared: bool = True
    critic: bool = False
    whole_groups: bool = True
    lora: int = 0
    reward_model: bool = False
    recompute: bool = True


METHODS: dict[str, Method] = {
    "p3o": Method("P3O, shared prompt"),
    "p3o_own_rows": Method("P3O, own rows", shared=False),
    "p3o_lora": Method("P3O with LoRA", lora=16),
    "ppo_shared": Method("PPO, shared prompt", critic=True),
    "ppo": Method("PPO, own rows", shared=False, critic=True, whole_groups=False),
}


@dataclass(frozen=True)
class Memory:
    """Bytes of one learner's rank by what they are for."""

    parts: dict[str, int | float] = field(default_factory=dict)

    @property
    def total(self) -> int | float:
        """All of it."""
        return sum(self.parts.values())

    @property
    def lasting(self) -> int | float:
        """What is there between steps as well."""
        passing = ("gathered weights", "gathered gradients", "activations", "logits", "gradients")
        return sum(size for name, size in self.parts.items() if name not in passing)


def learner_memory(shape: Shape, work: Work, method: Method, ranks: int, assumed: Assumptions) -> Memory:
    """Bytes of each rank at the height of a training pass."""
    size, adapter = shape.parameters, shape.adapter_parameters(method.lora) if method.lora else 0
    trained = adapter if method.lora else size
    frozen = size * BF16 / ranks
    tokens = pass_tokens(work, method, ranks, assumed)
    kept = shape.kept_per_layer * BF16
    activations = shape.layers * shape.hidden * BF16 + kept if method.recompute else shape.layers * kept
    critics = 1 if method.critic else 0
    outside, layer = shape.outside, shape.layer_parameters
    parts = {
        "weights": FP32 * trained / ranks + (frozen if method.lora else 0.0),
        "gradients": FP32 * trained / ranks,
        "Adam's moments": 2 * FP32 * trained / ranks,
        # Of policy and critic what is outside of the layers, and two layers: the one at work and the next. The reference has
        # given back what its passes gathered.
        "gathered weights": BF16 * ((1 + critics) * outside + 2 * layer),
        # What is outside of the layers has its gradients until the end of the backward pass; a layer's are there as they
        # are made and as they are summed.
        "gathered gradients": 0 if method.lora else (1 + critics) * BF16 * outside + (BF16 + FP32) * layer,
        "activations": tokens * activations,
        "logits": 3 * FP32 * assumed.head_tokens * shape.vocabulary,
        # As the policy was handed over: in float32, or an adapter on shards of its own of the base.
        "reference": FP32 * trained / ranks + (frozen if method.lora else 0.0),
        "critic": 4 * FP32 * trained / ranks + (frozen if method.lora else 0.0) if method.critic else 0.0,
        "reward model": BF16 * size if method.reward_model else 0.0,
        "process": assumed.runtime,
    }
    return Memory({name: value for name, value in parts.items() if value})


def groups_per_rank(work: Work, method: Method, ranks: int) -> int | float:
    """Of the busiest rank, in parts of a group where responses go anywhere."""
    parts = 1 if method.whole_groups else work.responses
    return math.ceil(work.prompts * parts / ranks) / parts


def pass_groups(work: Work, method: Method, ranks: int, assumed: Assumptions) -> int | float:
    """Groups of one micro-batch, at least one (or one response)."""
    parts = 1 if method.whole_groups else work.responses
    one = rows_of(work, 1, shared=method.shared).tokens / parts
    most = max(1, int(assumed.micro_batch_tokens // one)) / parts
    return min(groups_per_rank(work, method, ranks), most)


def pass_tokens(work: Work, method: Method, ranks: int, assumed: Assumptions) -> int | float:
    """Tokens of one micro-batch."""
    return rows_of(work, pass_groups(work, method, ranks, assumed), shared=method.shared).tokens


@dataclass(frozen=True)
class LearnerCost:
    """What learning from one step's samples takes.

    Attributes:
        operations: of all ranks together, recomputation left out: the useful ones.
        seconds: of the slowest rank; within a pass, traffic is hidden behind arithmetic as far as it is shorter.
        computing, communicating: seconds of each by itself.
        gathered, scattered: bytes that each rank receives in all-gathers, and sends in reduce-scatters.
    """

    operations: int | float
    seconds: int | float
    computing: int | float
    communicating: int | float
    gathered: int | float
    scattered: int | float


def learner_cost(shape: Shape, work: Work, method: Method, ranks: int, assumed: Assumptions) -> LearnerCost:
    """Training passes of the policy (and of a critic), and the forward passes of everything else."""
    groups = groups_per_rank(work, method, ranks)
    rows = rows_of(work, groups, shared=method.shared)
    forward = shape.forward_operations(rows.tokens, rows.scored, rows.pairs)
    body = shape.forward_operations(rows.tokens, 0, rows.pairs)
    micro_batches = math.ceil(groups / pass_groups(work, method, ranks, assumed))
    again = 1 if method.recompute else 0
    # With LoRA the frozen weights need no gradients of their own: a backward pass is one forward pass, not two.
    backward = 1 if method.lora else 2
    # log π_old needs a pass only if the policy moves between the updates; with one update the training pass has it.
    forwards = 1 + (work.updates > 1)
    passes = [forward] * forwards + [body] * method.reward_model + [body] * method.critic
    trainings = [forward] + [body] * method.critic
    useful = sum(passes) + work.passes * sum(trainings) * (1 + backward)
    everything = useful + work.passes * sum(trainings) * again
    others = (ranks - 1) / ranks
    trained = shape.adapter_parameters(method.lora) if method.lora else shape.parameters
    # A training pass gathers layers twice and what is outside of them once; a pass without gradients leaves that gathered.
    # The reward model is whole.
    training = 2 * shape.parameters - shape.outside
    forward_gathers = len(passes) - (1 if method.reward_model else 0)
    once = forward_gathers * shape.outside
    each = forward_gathers * (shape.parameters - shape.outside) + work.passes * len(trainings) * training
    gathered = BF16 * (once + micro_batches * each) * others
    scattered = micro_batches * work.passes * len(trainings) * FP32 * trained * others
    computing = everything / (assumed.peak * assumed.training_share)
    communicating = (gathered + scattered) / collective_rate(ranks, assumed)
    return LearnerCost(
        operations=useful * work.prompts / groups,
        seconds=max(computing, communicating),
        computing=computing,
        communicating=communicating,
        gathered=gathered,
        scattered=scattered,
    )


def collective_rate(ranks: int, assumed: Assumptions) -> int | float:
    """Bytes per second at which every rank receives in a ring collective.

    Within a node NVLink limits. Across nodes a ring enters each node once, and as many rings as it has cards run side by side.
    """
    across = math.inf if ranks <= assumed.per_node else assumed.per_node * assumed.network
    return min(assumed.node_link, across) * assumed.link_share


def server_gpus(shape: Shape, assumed: Assumptions) -> int:
    """GPUs of one vLLM server: the fewest, a power of two, whose memory the weights fill at most by half."""
    needed = shape.parameters * BF16 / (0.5 * assumed.usable * assumed.memory)
    return 1 << max(0, math.ceil(math.log2(needed)))


@dataclass(frozen=True)
class RolloutCost:
    """What sampling one step's responses takes.

    Attributes:
        seconds: until the last response is there.
        busy: seconds until half-empty batches begin: what a server needs that goes on with the next step's prompts.
        at_once: responses that one server decodes at a time.
        cache: bytes of keys and values on each GPU.
    """

    seconds: int | float
    busy: int | float
    at_once: int
    cache: int | float


def rollout_cost(shape: Shape, work: Work, gpus: int, assumed: Assumptions, *, taken: int | float = 0.0) -> RolloutCost:
    """Servers share the responses evenly; each prefills a prompt once and decodes its K responses from the shared cache.

    Args:
        taken: bytes of each GPU that something else holds.

    Raises:
        ValueError: if the GPUs are not whole servers, or not one response fits.
    """
    width = server_gpus(shape, assumed)
    if gpus < width or gpus % width:
        raise ValueError(f"{gpus} GPUs are not whole servers of {width}")
    servers = gpus // width
    weights = shape.parameters * BF16
    room = width * (assumed.usable * assumed.memory - assumed.runtime - taken) - weights
    # The prompt's cache is shared by its K responses. Those that begin together end together: there is room for whole ones.
    each = shape.cache_bytes * (work.prompt_tokens / work.responses + work.response_tokens)
    rows = math.ceil(work.prompts * work.responses / servers)
    at_once = min(rows, int(room // each))
    if at_once < 1:
        raise ValueError(f"a server of {width} GPUs has no room for a response")
    prompts = math.ceil(work.prompts / servers)
    pairs = work.prompt_tokens * (work.prompt_tokens + 1) / 2
    prefill = shape.forward_operations(work.prompt_tokens, 1, pairs) * prompts
    prefill /= width * assumed.peak * assumed.prefill_share
    waves = rows / at_once
    busy = prefill + waves * work.response_tokens * decode_step(shape, work, at_once, assumed)
    straggling = (work.tail - 1) * work.response_tokens * decode_step(shape, work, 1, assumed)
    return RolloutCost(busy + straggling, busy, at_once, at_once * each / width)


def decode_step(shape: Shape, work: Work, rows: int | float, assumed: Assumptions) -> int | float:
    """Seconds in which one server writes one token of so many responses: reading weights and caches, or arithmetic."""
    width = server_gpus(shape, assumed)
    context = work.prompt_tokens + work.response_tokens / 2
    read = shape.read_per_token * BF16 + rows * context * shape.cache_bytes
    reading = read / (width * assumed.bandwidth * assumed.bandwidth_share)
    operations = shape.forward_operations(rows, rows, rows * context)
    computing = operations / (width * assumed.peak * assumed.prefill_share)
    return max(reading, computing) + assumed.decode_overhead


def push_seconds(shape: Shape, learners: int, rollouts: int, assumed: Assumptions) -> int | float:
    """Seconds of a push as ``p3o.rollouts`` makes it with ``push_dtype: bfloat16`` over nccl, one thing after another.

    The learner's ranks gather the weights, the first one copies them to its host's memory, where they wait for the servers, and
    each tensor from there to its GPU and on to all servers at once.
    """
    size = shape.parameters * BF16
    gathering, copying = size / collective_rate(learners, assumed), 2 * size / assumed.host_copy
    return gathering + copying + broadcast_seconds(shape, learners, rollouts, assumed)


def broadcast_seconds(shape: Shape, learners: int, rollouts: int, assumed: Assumptions) -> int | float:
    """Of these the last: the bfloat16 weights to all servers, as fast as one card sends; NVLink inside one node."""
    link = assumed.node_link if learners + rollouts <= assumed.per_node else assumed.network
    return shape.parameters * BF16 / (link * assumed.link_share)


def push_bytes(shape: Shape, rollouts: int, assumed: Assumptions) -> int | float:
    """Bytes that arrive at all servers together: each gets the weights once."""
    return float(shape.parameters * BF16 * (rollouts // server_gpus(shape, assumed)))


def evaluation_bytes(shape: Shape, memory: Memory) -> int | float:
    """Bytes of a rank while it measures the KL of an evaluation, whose responses servers wrote: of policy and reference what is
    outside of the layers, and two layers, beside what lasts."""
    return memory.lasting + 2 * BF16 * (shape.outside + shape.layer_parameters)
