"""Builds wheel and sdist, installs the wheel into an empty environment, and does there what the README shows.

    python tests/release/check_wheel.py [--without-demo | --whole-demo]

Run by `make release-check`, where the demo is the quick one under the whole one's name. With --without-demo an untrained model
stands where the demo would leave its fine-tuned one, and everything else is the same.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
EXTRAS = {"data", "gguf", "judge", "label", "lora", "tensorboard", "wandb", "trackio"}
EXTRAS |= {"tracking", "postgresql", "serve", "ray", "verl", "docs", "dev"}
UNTRAINED = """
from p3o.data.embedded.language import build_model, build_tokenizer
tokenizer = build_tokenizer()
build_model(tokenizer, seed=0).save_pretrained("runs/demo/sft")
tokenizer.save_pretrained("runs/demo/sft")
"""


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that must succeed; it finds no package but those of its own environment."""
    print("+", *(Path(part).name if Path(part).is_absolute() else part for part in map(str, command)), flush=True)
    began = time.monotonic()
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=outside, text=True, capture_output=True, check=False)
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def built(folder: Path) -> tuple[Path, Path]:
    """The wheel and the sdist of this checkout."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=ROOT)
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """Nothing is missing, nothing is there that has no business in it, and the metadata is what an index shows."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"p3o"}, (
        "the package and nothing else"
    )
    source = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "p3o").rglob("*") if path.is_file()}
    missing = {name for name in source if "__pycache__" not in name} - set(names)
    assert not missing, f"not in the wheel: {sorted(missing)}"
    metadata = Parser().parsestr(
        zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("/METADATA"))).decode()
    )
    assert metadata["Name"] == "p3o"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra", [])) >= EXTRAS
    assert metadata["Version"] in (ROOT / "CITATION.cff").read_text(), "CITATION.cff names another version"
    assert f"## {metadata['Version']}" in (ROOT / "CHANGELOG.md").read_text(), "CHANGELOG.md does not have this version"
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for needed in (
        "Makefile",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "tests",
        "docs",
        "examples",
        "benchmarks",
        "security",
        "tools",
        "zensical.toml",
    ):
        assert needed in inside or any(name.startswith(f"{needed}/") for name in inside), f"not in the sdist: {needed}"


def check_use(wheel: Path, folder: Path, *, demo: str) -> None:
    """What the README shows, in an environment that holds the wheel and what it asks for.

    Args:
        demo: "quick", "whole" or "none".
    """
    venv.create(folder / "env", with_pip=True)
    binaries = folder / "env" / "bin"
    python, p3o = binaries / "python", binaries / "p3o"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "-c", ROOT / "constraints.txt", "torch", wheel, cwd=folder)
    print(run(p3o, "--version", cwd=folder).strip())
    run(p3o, "doctor", cwd=folder)
    if demo == "none":
        run(python, "-c", UNTRAINED, cwd=folder)
    else:
        run(p3o, "demo", *(() if demo == "whole" else ("--quick", "--name", "demo")), cwd=folder)
        assert (folder / "runs" / "demo" / "report.html").stat().st_size > 100_000
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    assert run(python, "-c", block.group(1), cwd=folder).count("'reward':") == 3
    for example in ("custom_algorithm", "custom_loop"):
        print(run(python, ROOT / "examples" / f"{example}.py", "runs/demo/sft", cwd=folder).strip().splitlines()[-1])


def main() -> None:
    """Build, look inside, install, use."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--whole-demo", action="store_const", const="whole", dest="demo", help="as the README shows it")
    size.add_argument(
        "--without-demo", action="store_const", const="none", dest="demo", help="an untrained model instead"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="p3o-release-") as scratch:
        folder = Path(scratch)
        wheel, sdist = built(folder / "dist")
        check_contents(wheel, sdist)
        check_use(wheel, folder, demo=options.demo or "quick")
    print("the wheel installs into an empty environment and does what the README shows")


if __name__ == "__main__":
    main()
