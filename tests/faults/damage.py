"""Files of a run's folder that are damaged while nothing trains in it."""

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from byol_jax.runs import run as run_lib
from byol_jax.runs.checkpoint import Checkpoints

from . import comparison
from .processes import Program
from .tally import Tally


def _flip(path: Path) -> None:
    """Flips one bit in the middle, or adds a byte to an empty file."""
    content = bytearray(path.read_bytes() or b"\0")
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a flipped bit": _flip,
    "cut to half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": Path.unlink,
}


class Damaged:
    """Copies of an undisturbed run without its last checkpoint, to be damaged."""

    def __init__(self, undisturbed: Path, scratch: Path):
        """Copies nothing yet."""
        self.undisturbed = undisturbed
        self._scratch = scratch
        self._copies = 0
        folders = (undisturbed / "checkpoints").iterdir()
        steps = sorted(int(path.name) for path in folders if path.name.isdigit())
        *_, self.before, self.newest, self._last = steps
        self._folder = Path("checkpoints") / str(self.newest)
        folder = undisturbed / self._folder
        self.files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())

    def size(self, file: Path) -> int:
        """The bytes of one of the files."""
        return (self.undisturbed / self._folder / file).stat().st_size

    def copy(self) -> Path:
        """A copy in which the last checkpoint was never written."""
        self._copies += 1
        workdir = self._scratch / str(self._copies)
        shutil.copytree(self.undisturbed, workdir)
        shutil.rmtree(workdir / "checkpoints" / str(self._last))
        return workdir

    def copy_with(self, kind: str, file: Path) -> Path:
        """A copy with one file of its newest checkpoint damaged."""
        workdir = self.copy()
        DAMAGES[kind](workdir / self._folder / file)
        return workdir


def read_back(
    damaged: Damaged, kind: str, files: Sequence[Path], log: Callable[[str], None]
) -> Tally:
    """Damages files of the newest checkpoint one at a time; restores the newest undamaged state."""
    tally = Tally(f"every file of the newest checkpoint, {kind}: read back")
    wanted = {
        step: comparison.state_at(damaged.undisturbed, step)
        for step in (damaged.before, damaged.newest)
    }
    for file in files:
        workdir = damaged.copy_with(kind, file)
        run = run_lib.read(workdir)
        abstract = run_lib.abstract_state(run.learner(), run.config)
        messages: list[str] = []
        try:
            with Checkpoints(workdir / "checkpoints") as checkpoints:
                restored = checkpoints.restore_newest(abstract, messages.append)
        except Exception as error:  # any error is a loss here
            tally.lose(f"{file} {kind}: {error!r}")
        else:
            difference = comparison.difference_of_states(
                wanted[restored.step], comparison.by_name(restored.state)
            )
            if restored.step == damaged.before and str(damaged.newest) not in " ".join(messages):
                difference = "fell back without a message"
            tally.count(difference and f"{file} {kind}: {difference}")
            log(f"{file} {kind}: step {restored.step}, {' / '.join(messages) or 'no message'}")
        tally.message = max(tally.message, *messages, "", key=len)
        shutil.rmtree(workdir)
    return tally


def train_on(
    damaged: Damaged, number: int, rng: random.Random, log: Callable[[str], None]
) -> Tally:
    """Damages the `number` largest files of the newest checkpoint, and trains on to the end."""
    tally = Tally("its largest files, each in one of these ways: trained on")
    wanted = comparison.result(damaged.undisturbed)
    largest = sorted(damaged.files, key=damaged.size, reverse=True)[:number]
    kinds = {file: rng.choice(list(DAMAGES)) for file in largest}
    workdirs = {file: damaged.copy_with(kind, file) for file, kind in kinds.items()}
    command = [sys.executable, "-m", "tests.faults.in_one_process", *map(str, workdirs.values())]
    with Program(command) as program:
        for number, (file, workdir) in enumerate(workdirs.items(), 1):
            if not program.wait_until(lambda n=number: len(_reports(program)) >= n):
                tally.lose(f"{file} {kinds[file]}: {program.end()}")
                return tally
            report = _reports(program)[number - 1]
            line = next((line for line in report["output"] if str(damaged.newest) in line), "")
            log(f"{file} {kinds[file]}, trained on: {report['error'] or line}")
            if report["error"]:
                tally.lose(f"{file} {kinds[file]}: {report['error']}")
                continue
            tally.message = max(tally.message, line, key=len)
            difference = comparison.difference(wanted, comparison.result(workdir))
            tally.count(difference and f"{file} {kinds[file]}: {difference}")
    return tally


def _reports(program: Program) -> list[dict]:
    return [json.loads(line) for line in program.lines if line.startswith('{"output"')]
