"""A real vLLM server on a CPU that samples ahead for two learner processes, SmolLM2 sharded over them: as for one."""

import json
from pathlib import Path

import pytest
from tests.distributed.test_torchrun import PROMPTS, assert_alike, p3o, rows_of
from tests.rollouts.real import RealServer, needs_vllm
from tests.rollouts.test_vllm import MODEL, needs_model

pytestmark = [pytest.mark.slow, needs_vllm, needs_model]

CONFIG = """
name: run
device: cpu
threads: 1
model: {model}
data: {{prompts: {prompts}, heldout_prompts: {prompts}}}
reward: {{function: tests.distributed.test_torchrun:reward}}
rl:
  training: {{steps: 2, max_staleness: 1, prompts_per_step: 3, max_new_tokens: 8, learning_rate: 1.0e-5}}
  runs: {{p3o_v2: {{algorithm: p3o_v2}}}}
  rollout: {{engine: vllm, urls: ["{url}"]}}
evaluation: {{prompts: 2, every: 2, followed_prompts: 1}}
parallel: {{mode: fsdp, timeout_minutes: 10}}
"""
CLOCKS = {"push_seconds", "rollout_seconds"}


def test_two_sharded_ranks_do_what_one_process_does(tmp_path: Path) -> None:
    server = RealServer(
        MODEL,
        tmp_path,
        *("--max-model-len", "256", "--logprobs-mode", "processed_logprobs"),
        *("--weight-transfer-config", '{"backend": "p3o_gloo"}'),
        *("--worker-extension-cls", "p3o.rollouts.worker.Repacking"),
    )
    metrics = []
    try:
        server.start()
        server.wait()
        for ranks in (1, 2):
            folder = tmp_path / f"ranks{ranks}"
            folder.mkdir()
            prompts = folder / "prompts.jsonl"
            prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
            (folder / "config.yaml").write_text(CONFIG.format(model=MODEL, prompts=prompts, url=server.url))
            done = p3o(folder, "rl", ranks)
            assert done.returncode == 0, done.stderr
            metrics.append([{key: row[key] for key in row.keys() - CLOCKS} for row in rows_of(folder)])
    finally:
        server.kill()
    one, two = metrics
    steps = [row for row in two if row["stage"] == "rl"]
    assert len(steps) == 2
    assert all(0 < row["mismatch_max"] < 1e-3 for row in steps), "the server had the weights that the shards made up"
    assert_alike(two, one, 1e-3)
