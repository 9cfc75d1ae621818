"""What SECURITY.md promises. Pickles: also tests/models/test_loading.py; pages that escape: tests/report, tests/labeling."""

import ast
import json
from pathlib import Path

import pytest
import torch
from tests.chat_model import chat_tokenizer

import p3o
from p3o.cli import main
from p3o.config import RunConfig
from p3o.config_loading import load_config
from p3o.data.chat import ChatFormat
from p3o.data.formats import Example, Message
from p3o.data.rows import BadRowError
from p3o.errors import P3OError
from p3o.feedback.judge.prompts import Question
from p3o.feedback.reward_model import load_reward_model
from p3o.models.language import load_language_model, load_model_config, load_tokenizer
from p3o.training.tracking import RunFolder

SOURCES = sorted(Path(p3o.__file__).parent.rglob("*.py"))
KEYS = {
    name: f"sk-{name.lower()}-0123456789abcdef"
    for name in ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "MY_JUDGE_KEY")
}

UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "torch.load",
    "numpy.load",
    "np.load",
    "yaml.load",
    "yaml.unsafe_load",
    "os.system",
    "os.popen",
    "eval",
    "exec",
}


def test_the_source_neither_unpickles_nor_evaluates() -> None:
    assert len(SOURCES) > 100
    for path, node in ((file, node) for file in SOURCES for node in ast.walk(ast.parse(file.read_text("utf-8")))):
        if isinstance(node, ast.Import):
            assert not UNSAFE_MODULES & {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in UNSAFE_MODULES
        elif isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in UNSAFE_CALLS, f"{path}:{node.lineno}"
            assert not any(word.arg == "shell" for word in node.keywords), f"{path}:{node.lineno}"


@pytest.fixture
def with_code(tmp_path: Path) -> tuple[Path, Path]:
    """A model's folder whose own code leaves a mark when it runs, and the mark."""
    folder, mark = tmp_path / "model", tmp_path / "it_ran"
    folder.mkdir()
    code = f"open({str(mark)!r}, 'w').close()\nfrom transformers import PretrainedConfig as Own\n"
    code += "OwnModel = OwnTokenizer = Own\n"
    (folder / "own.py").write_text(code)
    auto = {"AutoConfig": "own.Own", "AutoTokenizer": ["own.OwnTokenizer", None]}
    auto |= dict.fromkeys(("AutoModelForCausalLM", "AutoModelForSequenceClassification"), "own.OwnModel")
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "OwnTokenizer", "auto_map": auto}))
    return folder, mark


@pytest.mark.parametrize("load", [load_tokenizer, load_model_config, load_language_model, load_reward_model])
def test_code_in_a_model_folder_does_not_run_unless_asked(with_code: tuple[Path, Path], load: object) -> None:
    folder, mark = with_code
    settings = {} if load in (load_tokenizer, load_model_config) else {"device": torch.device("cpu")}
    with pytest.raises(P3OError):
        load(str(folder), **settings)  # type: ignore[operator]
    assert not mark.exists()
    assert RunConfig().trust_remote_code is False


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ lipsum.__globals__['os'].popen('true').read() }}",
    "{{ ''['__class__'] }}{{ (''|attr('__class__')).__mro__ }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ range(10**9)|list }}",
]
SLOTS = "{{ prompt }}{{ response_a }}{{ response_b }}"


@pytest.mark.parametrize("escape", ESCAPES)
def test_templates_cannot_leave_the_sandbox(tmp_path: Path, escape: str) -> None:
    chat = ChatFormat(chat_tokenizer(template=escape + "{{ messages[0].content }}"))
    with pytest.raises(BadRowError):
        chat.render(Example((Message("user", "Who?"),)))
    (tmp_path / "template").write_text(escape + SLOTS)
    with pytest.raises(P3OError, match="not a template that can be filled"):
        Question(str(tmp_path / "template"))


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/etc", "a\\b", ".hidden", "", "a\0b", "a\n", "~"])
def test_no_name_leaves_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(P3OError, match="not a valid name for a run"):
        RunFolder.create(tmp_path / "runs", name, config="", seed=0, threads=1)
    config = tmp_path / "config.yaml"
    for text in (f"name: {json.dumps(name)}\n", f"rl: {{runs: {{{json.dumps(name)}: {{algorithm: ppo}}}}}}\n"):
        config.write_text(text, encoding="utf-8")
        with pytest.raises(P3OError):
            load_config(config, [], RunConfig)
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml"}


SMALL = """
embedded: {demonstrations: 32, pairs: 32, prompts: 8}
threads: 1
device: cpu
sft: {steps: 2, batch_size: 8, learning_rate: 4.0e-3}
reward: {train: {steps: 2, batch_size: 8, learning_rate: 1.0e-3}}
rl: {training: {steps: 2, prompts_per_step: 2, max_new_tokens: 4}}
evaluation: {prompts: 4, every: 1, best_of: [], batch_size: 4}
checkpoints: {every: 1}
tracking: [tensorboard]
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_secret_is_ever_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Keys of every service in the environment, and a whole run. A judge that quotes its key: tests/cli/test_judge.py."""
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    (tmp_path / "small.yaml").write_text(SMALL)
    output = tmp_path / "runs"
    assert main(["run", "--config", str(tmp_path / "small.yaml"), "--name", "small", "--output", str(output)]) == 0
    told = capsys.readouterr()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    for key in KEYS.values():
        assert key not in told.out + told.err
        for path in files:
            assert key.encode() not in path.read_bytes(), path
