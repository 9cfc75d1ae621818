"""The whole way with a real model behind a real OpenAI-compatible server: ``transformers serve`` on loopback with SmolLM2."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from p3o.feedback.judge import JudgeConfig, open_judge, verdict_rates

MODEL = Path(os.environ.get("P3O_SERVED_MODEL", Path(__file__).parents[3] / "models" / "smollm2"))
"""As examples/smollm2/get_model.py writes it."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_dir(), reason=f"no model in {MODEL.name}: run examples/smollm2/get_model.py"),
    pytest.mark.skipif(find_spec("fastapi") is None, reason="transformers serve needs fastapi"),
]

PROMPTS = ["What is the capital of France?", "How do I boil an egg?", "Name a colour."]
GOOD = ["The capital of France is Paris.", "Put it into boiling water for eight minutes.", "Blue."]
BAD = ["Bananas grow on trees in the sea.", "asdf asdf asdf", "Blue."]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("serve") / "log").open("wb")
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(MODEL), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    served = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        for _ in range(300):
            assert served.poll() is None, Path(log.name).read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        served.terminate()
        served.wait(timeout=30)
        log.close()


@pytest.mark.parametrize("answer", ["sentence", "letter"])
def test_every_pair_gets_its_verdict_or_is_counted_and_is_paid_once(address: str, answer: str, tmp_path: Path) -> None:
    config = JudgeConfig(
        kind="openai",
        model=str(MODEL),
        base_url=address,
        answer=answer,
        max_tokens=24,
        concurrency=2,
        timeout=300.0,
        price_input=1.0,
        price_output=1.0,
    )
    cache = tmp_path / "answers.sqlite"
    judge = open_judge(config, cache=cache)
    verdicts = judge.compare(PROMPTS, GOOD, BAD)
    rates = verdict_rates(verdicts)
    print(answer, rates)  # noqa: T201 - for docs/evaluation.md, with pytest -s
    assert rates.pairs == rates.wins + rates.ties + rates.losses + rates.unjudged == 3
    assert rates.failed == 0
    assert verdicts[2].preference == 0.0, "equal texts are not asked about"
    asked = [given for verdict in verdicts[:2] for given in (verdict.forward, verdict.backward)]
    assert all(given is not None and given.text and given.input_tokens > 20 for given in asked)
    assert all(given is not None and 1 <= given.output_tokens <= config.answer_tokens for given in asked)
    assert all(given is not None and MODEL.name in given.served_by for given in asked)
    assert judge.spent == pytest.approx(sum(g.input_tokens + g.output_tokens for g in asked if g is not None) / 1e6)
    # Known now: the same again asks nothing and costs nothing more.
    again = open_judge(config, cache=cache)
    assert again.estimate(PROMPTS, GOOD, BAD).questions == 0
    assert again.compare(PROMPTS, GOOD, BAD) == verdicts
    assert again.spent == judge.spent
