"""The launch recipes of examples/cluster: shells parse them, YAML is YAML, and the command line knows their options."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from p3o.cli.app import app
from p3o.config import RunConfig
from p3o.config_loading import load_config

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"
SHELLS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])
TORCHRUN = ("torch.distributed.run", "-m p3o")


def job() -> dict[str, Any]:
    """The RayJob."""
    content = yaml.safe_load((FOLDER / "kuberay_job.yaml").read_text())
    assert isinstance(content, dict)
    return content


def commands() -> list[tuple[str, list[str]]]:
    """Every p3o command in the recipes as (file, arguments)."""
    found = []
    for file in SHELLS:
        text = file.read_text().replace("\\\n", " ")
        text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        for line in re.findall(r"(?:^|\s)p3o (rl .*)", text):
            # What the shell would put in: two nodes of eight GPUs.
            plain = re.sub(r"\$\{resume\[@\].*\}\"?\}( &)?", "", re.sub(r'"\$\(\(.*?\)\)"', "16", line))
            found.append((file.name, shlex.split(re.sub(r"\$\w+", "host", plain))))
    found.append(("kuberay_job.yaml", shlex.split(job()["spec"]["entrypoint"])[1:]))
    return found


@pytest.mark.parametrize("file", SHELLS, ids=lambda file: file.name)
def test_shells_parse_the_scripts(file: Path) -> None:
    assert subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True, check=True).stderr == ""
    assert "set -euo pipefail" in file.read_text()


def test_every_recipe_starts_p3o() -> None:
    assert sorted(name for name, _ in commands()) == sorted([*(file.name for file in SHELLS), "kuberay_job.yaml"])


@pytest.mark.parametrize(("file", "arguments"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_command_line_knows_the_options(file: str, arguments: list[str], tmp_path: Path) -> None:
    command = typer.main.get_command(app)
    context = command.make_context("p3o", list(arguments))
    name, rl, rest = command.resolve_command(context, context._protected_args + context.args)  # type: ignore[attr-defined]
    given = rl.make_context(name, rest, parent=context).params
    assert given["output"] == Path("/shared/runs")
    overrides = [*(given["set_"] or ()), "model=somewhere"]
    for key in ("engine", "workers", "ray_address"):
        if given[key] is not None:
            path = {"engine": "engine.name", "workers": "engine.workers", "ray_address": "engine.address"}[key]
            overrides.append(f"{path}={given[key]}")
    # The name says which engine it is, so it comes first.
    settings = load_config(None, sorted(overrides, key=lambda text: not text.startswith("engine.name")), RunConfig)
    assert settings.parallel.mode == "fsdp"
    assert settings.engine.name == ("ray" if "ray" in file else "local")


def test_the_job_reserves_what_its_workers_want() -> None:
    spec = job()["spec"]["rayClusterSpec"]
    workers = spec["workerGroupSpecs"][0]
    container = workers["template"]["spec"]["containers"][0]
    arguments = shlex.split(job()["spec"]["entrypoint"])
    assert int(arguments[arguments.index("--workers") + 1]) == workers["maxReplicas"] == workers["replicas"]
    assert f"engine.min_workers={workers['minReplicas']}" in arguments
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["authOptions"] == {"mode": "token"}
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {mount["mountPath"] for mount in head["volumeMounts"]} <= {
        mount["mountPath"] for mount in container["volumeMounts"]
    }


def test_the_ray_switches_exist(tmp_path: Path) -> None:
    start = pytest.importorskip("ray.scripts.scripts").start
    known = {option for parameter in start.params for option in parameter.opts}
    for file in SHELLS:
        if "ray start" in (text := file.read_text()):
            used = set(re.findall(r"--[a-z-]+", " ".join(re.findall(r"ray start(.*)", text))))
            assert used <= known, file.name
