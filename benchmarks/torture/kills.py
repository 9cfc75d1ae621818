"""Kill a run again and again, damage its checkpoints, fill its disk; at the end it must be the run that was never touched.

    python -m benchmarks.torture.kills --count 60 --seed 1

Every stage and every algorithm of config.yaml, with a checkpoint after every step. A life of the run ends by SIGKILL, SIGTERM
or SIGINT at a random moment, by SIGKILL as soon as a file is being written, or because the disk is full. What a life leaves
must be whole; then ``p3o run --resume`` goes on. A run that is complete is compared, byte for byte, with one that ran through.
"""

import argparse
import hashlib
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.torture.damage import DAMAGES, Damage, newest_checkpoint
from benchmarks.torture.lives import Life, begin, import_everything
from benchmarks.torture.record import keep
from safetensors import SafetensorError, safe_open

CONFIG = Path(__file__).with_name("config.yaml")
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
STAGES = ("sft", "sample", "reward", "rl", "evaluate", "report")
NAME = "killed"


class BrokenPromiseError(Exception):
    """A promise that was not kept; the message says which."""


@dataclass
class Counts:
    """What was done to the runs so far.

    Attributes:
        kills: lives ended by a signal, by the signal's name.
        places: those kills by the stage, or the RL run, that they fell into.
        inside_writes: SIGKILLs that left a temporary file or folder behind: they fell inside a write.
        full_disks: lives ended by a full disk or by a file that grew too large.
        damages: checkpoints damaged, by the kind of damage; each was named and passed over.
        unhurt: lives that no signal reached, because the run was complete before.
        runs: complete runs, each equal to the one that ran through.
    """

    kills: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    inside_writes: int = 0
    full_disks: Counter[str] = field(default_factory=Counter)
    damages: Counter[str] = field(default_factory=Counter)
    unhurt: int = 0
    runs: int = 0

    def record(self) -> dict[str, object]:
        """As JSON values."""
        tables = {name: dict(sorted(table.items())) for name, table in vars(self).items() if isinstance(table, Counter)}
        return vars(self) | tables | {"total_kills": self.kills.total()}


class Torture:
    """The runs of one seed.

    Args:
        output: an empty folder for all runs.
        seed: of the moments and means of every death.
        disk: what makes the disk of ``output`` full for the time of a block, and how to call that; None: only file sizes
            are limited.
    """

    def __init__(self, output: Path, *, seed: int, disk: "Disk | None") -> None:
        self.output, self.disk = output, disk
        self.random = random.Random(seed)
        self.counts = Counts()
        self.folder = output / NAME
        self.errors = output / "stderr.txt"
        started = time.monotonic()
        self._to_the_end(begin(self._new("whole"), self.errors))
        self.whole_seconds = time.monotonic() - started
        self.expected = content(output / "whole")

    def one_run(self) -> None:
        """One run through all its deaths, and the comparison.

        Raises:
            BrokenPromiseError: if a promise was not kept.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        damage: Damage | None = None
        complete = False
        while not complete:
            there = (self.folder / "run.json").exists()
            arguments = ["run", "--name", NAME, "--output", str(self.output), "--resume"] if there else self._new(NAME)
            if there and damage is None and self.random.random() < 0.2:
                complete = self._with_full_disk(arguments)
            else:
                complete = self._with_signal(begin(arguments, self.errors), damage)
            damage = None
            check_whole(self.folder)
            if not complete and self.random.random() < 0.5:
                damage = self._damage()
        found = content(self.folder)
        different = sorted(
            name for name in found.keys() | self.expected.keys() if found.get(name) != self.expected.get(name)
        )
        if different:
            raise BrokenPromiseError(f"not equal to the run that ran through: {', '.join(different)}")
        if left := temporary_names(self.folder):
            raise BrokenPromiseError(f"left over: {', '.join(map(str, left))}")
        if list((self.folder / "checkpoints").rglob("*.json")):
            raise BrokenPromiseError("checkpoints were left behind")
        self.counts.runs += 1

    def _with_signal(self, life: Life, damage: Damage | None) -> bool:
        """A life that a signal ends; whether the run was complete before."""
        if damage is not None:
            life.wait(lambda: "continuing after step" in life.told(), seconds=120)
            if not damage.named_in(life.told()):
                life.kill(signal.SIGKILL)
                raise BrokenPromiseError(f"{damage}: not named; the command told:\n{life.told()}")
            self.counts.damages[damage.kind] += 1
        number = self.random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        life.wait(seconds=self.random.uniform(0.3, self.whole_seconds / 5))
        if number == signal.SIGKILL and self.random.random() < 0.5:
            life.wait(lambda: bool(temporary_names(self.folder)), seconds=10)
            time.sleep(self.random.choice([0.0, 0.0, self.random.uniform(0, 0.02)]))
        life.kill(number)
        if life.code == 0:
            self.counts.unhurt += 1
            return True
        if life.code != CODES[number] or "Traceback" in life.told():
            raise BrokenPromiseError(f"exit code {life.code} after {number.name}; the command told:\n{life.told()}")
        self.counts.kills[number.name] += 1
        self.counts.places[place(self.folder)] += 1
        self.counts.inside_writes += bool(number == signal.SIGKILL and temporary_names(self.folder))
        return False

    def _with_full_disk(self, arguments: list[str]) -> bool:
        """A life with little room; whether it was complete all the same."""
        room = int(10 ** self.random.uniform(3, 6.5))
        if self.disk is not None and self.random.random() < 0.6:
            kind = "disk full"
            with self.disk.room_for(room):
                life = begin(arguments, self.errors)
                self._wait(life)
        else:
            kind = "file too large"
            life = begin(arguments, self.errors, largest_file=room)
            self._wait(life)
        if life.code == 0:
            return True
        told = [line for line in life.told().splitlines() if line.startswith("error: ")]
        if life.code != 2 or not told or "Traceback" in life.told():
            raise BrokenPromiseError(f"exit code {life.code} with {kind}; the command told:\n{life.told()}")
        self.counts.full_disks[kind] += 1
        return False

    def _damage(self) -> Damage | None:
        """Damage the newest checkpoint, if there is an older one to fall back to."""
        checkpoint = newest_checkpoint(self.folder, at_least=2)
        if checkpoint is None:
            return None
        kind = self.random.choice(sorted(DAMAGES))
        return DAMAGES[kind](checkpoint, kind, self.random)

    def _new(self, name: str) -> list[str]:
        return ["run", "--config", str(CONFIG), "--name", name, "--output", str(self.output)]

    def _wait(self, life: Life) -> None:
        if life.wait(seconds=900):
            life.kill(signal.SIGKILL)
            raise BrokenPromiseError("the command hangs")

    def _to_the_end(self, life: Life) -> None:
        self._wait(life)
        if life.code != 0:
            raise BrokenPromiseError(f"the run that nobody touched ended with {life.code}:\n{life.told()}")


def content(folder: Path) -> dict[str, str]:
    """The digest of every file that a run leaves, but for its report (which names its folder) and run.json (clock times)."""
    files = (path for path in folder.rglob("*") if path.is_file())
    kept = {path for path in files if path.suffix in (".safetensors", ".jsonl", ".json")} - {folder / "run.json"}
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def check_whole(folder: Path) -> None:
    """Every file that has its final name is whole; only the last line of a growing file may be torn.

    Raises:
        BrokenPromiseError: naming the file.
    """
    for path in folder.rglob("*"):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if "checkpoints" in path.parts:
            continue  # checked by their manifests when the run goes on
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".jsonl":
                for line in path.read_bytes().split(b"\n")[:-1]:
                    json.loads(line)
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    file.keys()
        except (ValueError, SafetensorError) as error:
            raise BrokenPromiseError(f"{path.relative_to(folder)}: half-written: {error}") from error


def temporary_names(folder: Path) -> list[Path]:
    """What a write has under a temporary name."""
    found = [path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth.removesuffix('*')}.*")]
    return [path.relative_to(folder) for path in found if path.suffix in (".tmp", ".old")]


def place(folder: Path) -> str:
    """The stage, or the RL run, that a death fell into."""
    try:
        done = json.loads((folder / "run.json").read_bytes())["seconds"]
    except FileNotFoundError:
        return "start"
    stage = next((stage for stage in STAGES if stage not in done), "end")
    if stage != "rl":
        return stage
    begun = [
        path.name for path in (folder / "checkpoints" / "rl").glob("[!.]*") if not (folder / "rl" / path.name).is_dir()
    ]
    return f"rl {begun[0]}" if begun else "rl, before a first checkpoint"


@dataclass(frozen=True)
class Disk:
    """A file system in memory of our own, whose size can be changed while it is used. Mounting it needs root."""

    folder: Path
    size: int = 2**31

    @contextmanager
    def room_for(self, count: int) -> Iterator[None]:
        """Within this block only so many more bytes can be written."""
        used = shutil.disk_usage(self.folder).used
        self._remount(used + count)
        try:
            yield
        finally:
            self._remount(self.size)

    def _remount(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


@contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    """Such a file system on a folder."""
    disk = Disk(folder)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={disk.size}", "p3o-torture", str(folder)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="kills at least; the last run is brought to its end")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no new run after so many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tmpfs", action="store_true", help="fill a real file system (needs root), not only files")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # nothing stays mounted
    import_everything()
    with tempfile.TemporaryDirectory(prefix="p3o-torture-") as name:
        output = Path(name)
        if given.tmpfs:
            with mounted(output) as disk:
                torture = run(output, given, disk)
        else:
            torture = run(output, given, None)
    keep(
        f"kills seed {given.seed}",
        given,
        torture.counts.record() | {"whole_run_seconds": round(torture.whole_seconds, 1)},
    )


def run(output: Path, given: argparse.Namespace, disk: Disk | None) -> Torture:
    """Torture runs until there were so many kills, or the time is over."""
    started = time.monotonic()
    torture = Torture(output, seed=given.seed, disk=disk)
    print(f"the run that nobody touches took {torture.whole_seconds:.0f} s", flush=True)
    while torture.counts.kills.total() < given.count and time.monotonic() - started < 60 * given.minutes:
        torture.one_run()
        print(json.dumps(torture.counts.record()), flush=True)
    return torture


if __name__ == "__main__":
    main()
