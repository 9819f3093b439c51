"""A disk that is full, and one that cannot be written: a small tmpfs of our own (Linux)."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from . import comparison
from .processes import Program, Run
from .tally import Tally

DISK_MIB = 16
# Left free while the run goes on: nothing, less than a checkpoint, and about one.
FREE_KIB = (0, 64, 256)


class Disk:
    """A tmpfs in a mount namespace of its own: neither root nor a trace is needed for it."""

    def __init__(self, holder: subprocess.Popen, mount_point: Path):
        """Of a shell in that namespace; use `small_disk`."""
        self._holder = holder
        self._mount_point = mount_point
        # The way from outside into another mount namespace.
        self.path = Path(f"/proc/{holder.pid}/root{mount_point}")

    def mount(self, options: str) -> bool:
        """Runs `mount -o OPTIONS` in the namespace: whether it worked."""
        self._holder.stdin.write(f"mount -o {options} tmpfs '{self._mount_point}'; echo $?\n")
        self._holder.stdin.flush()
        return self._holder.stdout.readline().strip() == "0"

    def fill(self, free_kib: int) -> None:
        """Takes all space but so much with one file."""
        ballast = self.path / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        os.truncate(ballast, max(0, ballast.stat().st_size - 1024 * free_kib))

    def give_back(self) -> None:
        """Frees what `fill` took."""
        (self.path / "ballast").unlink()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Disk | None]:
    """A disk of a few MiB over a folder, or None where this machine lets us have none."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with contextlib.ExitStack() as stack:
        try:
            holder = stack.enter_context(subprocess.Popen(command, text=True, **pipes))
            stack.callback(holder.kill)
            disk = Disk(holder, folder)
            mounted = disk.mount(f"size={DISK_MIB}m -t tmpfs")
        except OSError:  # no unshare, or it left at once
            mounted = False
        yield disk if mounted else None


def full_disk(folder: Path, undisturbed: comparison.Result, log: Callable[[str], None]) -> Tally:
    """Fills the disk while a run goes on: it says so and leaves; with space again it goes on."""
    tally = Tally("the disk is full")
    with small_disk(folder) as disk:
        if disk is None:
            tally.untried = "this machine gives us no tmpfs (unshare, mount)"
            return tally
        for free in FREE_KIB:
            run = Run(disk.path / f"run{free}")
            with run.start() as program:
                _wait_for_a_checkpoint(program)
                disk.fill(free)
                program.finish()
            disk.give_back()
            log(f"full but for {free} KiB: {program.end()}")
            _judge(tally, program, run, undisturbed)
    return tally


def read_only(folder: Path, undisturbed: comparison.Result, log: Callable[[str], None]) -> Tally:
    """Takes the right to write from a run's folder before it goes on, and gives it back."""
    tally = Tally("the disk is mounted read-only")
    with small_disk(folder) as disk:
        if disk is None:
            tally.untried = "this machine gives us no tmpfs (unshare, mount)"
            return tally
        run = Run(disk.path / "run")
        _train_a_part(run)
        disk.mount("remount,ro")
        program = run.complete()
        disk.mount("remount,rw")
        log(f"read-only: {program.end()}")
        _judge(tally, program, run, undisturbed)
    return tally


def without_permission(
    run: Run, undisturbed: comparison.Result, log: Callable[[str], None]
) -> Tally:
    """The same by the folder's mode, which root is above."""
    tally = Tally("the folder has no write permission")
    if os.geteuid() == 0:
        tally.untried = "root may write everywhere"
        return tally
    _train_a_part(run)
    folders = [path for path in (run.workdir, *run.workdir.rglob("*")) if path.is_dir()]
    for folder in folders:
        folder.chmod(0o500)
    program = run.complete()
    for folder in folders:
        folder.chmod(0o700)
    log(f"no permission: {program.end()}")
    _judge(tally, program, run, undisturbed)
    return tally


def _train_a_part(run: Run) -> None:
    with run.start() as program:
        _wait_for_a_checkpoint(program)
        program.send(signal.SIGKILL)
        program.finish()


def _wait_for_a_checkpoint(program: Program) -> None:
    program.wait_until(lambda: program.step() > 30)


def _judge(tally: Tally, program: Program, run: Run, undisturbed: comparison.Result) -> None:
    """Whether the program left with a sentence, and goes on from a checkpoint to the same end."""
    tally.said = program.error() or tally.said
    if not program.error() or program.finish() != 1 or program.said("Traceback"):
        tally.lose(f"no sentence, but {program.end()}")
        return
    last = run.complete()
    if last.finish() != 0 or not last.said("Resuming from"):
        tally.lose(f"after mending, no way on: {last.end()}")
        return
    tally.count(comparison.difference(undisturbed, comparison.result(run.workdir)))
