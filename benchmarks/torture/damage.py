"""What can happen to the files of a checkpoint on a disk: torn, cut short, bits turned, gone."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from p3o.training.checkpoint import MANIFEST, TENSORS, VALUES


@dataclass(frozen=True)
class Damage:
    """A damaged checkpoint.

    Attributes:
        kind: how it was damaged.
        file: which file of it.
        checkpoint: its folder.
    """

    kind: str
    file: str
    checkpoint: Path

    def named_in(self, text: str) -> bool:
        """Whether a warning names a file of this checkpoint and says that another one is used."""
        flat = "".join(text.split())  # the terminal breaks long lines
        told = "".join(f"skipped a damaged checkpoint: {self.checkpoint}/".split())
        return told in flat and "continuingfrom" in flat


def newest_checkpoint(run: Path, *, at_least: int) -> Path | None:
    """The newest checkpoint of the training that is under way, if it has so many."""
    folder = run / "checkpoints"
    steps = {path for path in folder.rglob("[0-9]*") if path.is_dir() and path.name.isdigit()}
    for training in sorted({path.parent for path in steps}):
        if training.parent.name == "rl" and (run / "rl" / training.name).is_dir():
            continue  # its result is there: nobody will read the checkpoint any more
        own = sorted(path for path in steps if path.parent == training)
        if len(own) >= at_least:
            return own[-1]
    return None


def _with_content(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, str, random.Random], Damage]:
    """Damage that changes what is in one of the three files."""

    def damage(checkpoint: Path, kind: str, rng: random.Random) -> Damage:
        path = checkpoint / rng.choice((TENSORS, VALUES, MANIFEST))
        path.write_bytes(change(path.read_bytes(), rng))
        return Damage(kind, path.name, checkpoint)

    return damage


def _bit_flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _torn(content: bytes, rng: random.Random) -> bytes:
    """As long as it was, but zeros from some place on: its last blocks never reached the disk."""
    end = rng.randrange(len(content) - 1)
    return content[:end] + bytes(len(content) - end)


def _missing(checkpoint: Path, kind: str, rng: random.Random) -> Damage:
    path = checkpoint / rng.choice((TENSORS, VALUES, MANIFEST))
    path.unlink()
    return Damage(kind, path.name, checkpoint)


def _emptied_folder(checkpoint: Path, kind: str, _: random.Random) -> Damage:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    return Damage(kind, MANIFEST, checkpoint)


DAMAGES: dict[str, Callable[[Path, str, random.Random], Damage]] = {
    "bit flipped": _with_content(_bit_flipped),
    "torn": _with_content(_torn),
    "cut short": _with_content(lambda content, rng: content[: rng.randrange(len(content))]),
    "grown": _with_content(lambda content, rng: content + rng.randbytes(rng.randint(1, 100))),
    "missing": _missing,
    "emptied folder": _emptied_folder,
}
