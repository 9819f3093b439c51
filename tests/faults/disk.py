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
# Left free while the run trains: nothing, less than a checkpoint, and about one.
FREE_KIB = (0, 64, 256)
NO_TMPFS = "this machine allows no tmpfs (unshare, mount)"


class Disk:
    """A tmpfs in its own mount namespace, which needs no root rights and leaves no trace."""

    def __init__(self, shell: subprocess.Popen, mount_point: Path):
        """Takes a shell in that namespace; use `small_disk`."""
        self._shell = shell
        self._mount_point = mount_point
        # The path from outside into another mount namespace.
        self.path = Path(f"/proc/{shell.pid}/root{mount_point}")

    def mount(self, options: str) -> bool:
        """Runs `mount -o OPTIONS` in the namespace; returns whether it worked."""
        self._shell.stdin.write(f"mount -o {options} tmpfs '{self._mount_point}'; echo $?\n")
        self._shell.stdin.flush()
        return self._shell.stdout.readline().strip() == "0"

    def fill(self, free_kib: int) -> None:
        """Fills the disk with one file, except for `free_kib`."""
        ballast = self.path / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        os.truncate(ballast, max(0, ballast.stat().st_size - 1024 * free_kib))

    def free(self) -> None:
        """Removes what `fill` wrote."""
        (self.path / "ballast").unlink()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Disk | None]:
    """A disk of a few MiB over a folder, or None if this machine does not allow it."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with contextlib.ExitStack() as stack:
        try:
            shell = stack.enter_context(subprocess.Popen(command, text=True, **pipes))
            stack.callback(shell.kill)
            disk = Disk(shell, folder)
            mounted = disk.mount(f"size={DISK_MIB}m -t tmpfs")
        except OSError:  # no unshare, or it ended at once
            mounted = False
        yield disk if mounted else None


def full_disk(folder: Path, undisturbed: comparison.Result, log: Callable[[str], None]) -> Tally:
    """Fills the disk while a run trains: it exits with an error, and resumes with free space."""
    tally = Tally("the disk is full")
    with small_disk(folder) as disk:
        if disk is None:
            tally.untried = NO_TMPFS
            return tally
        for free in FREE_KIB:
            run = Run(disk.path / f"run{free}")
            with run.start() as program:
                _wait_for_a_checkpoint(program)
                disk.fill(free)
                program.finish()
            disk.free()
            log(f"full except for {free} KiB: {program.end()}")
            _check(tally, program, run, undisturbed)
    return tally


def read_only(folder: Path, undisturbed: comparison.Result, log: Callable[[str], None]) -> Tally:
    """Mounts the disk of a run read-only before it resumes, then writable again."""
    tally = Tally("the disk is mounted read-only")
    with small_disk(folder) as disk:
        if disk is None:
            tally.untried = NO_TMPFS
            return tally
        run = Run(disk.path / "run")
        _train_partly(run)
        disk.mount("remount,ro")
        program = run.complete()
        disk.mount("remount,rw")
        log(f"read-only: {program.end()}")
        _check(tally, program, run, undisturbed)
    return tally


def without_permission(
    run: Run, undisturbed: comparison.Result, log: Callable[[str], None]
) -> Tally:
    """The same by the mode of the folders, which does not bind root."""
    tally = Tally("the folder has no write permission")
    if os.geteuid() == 0:
        tally.untried = "root may write everywhere"
        return tally
    _train_partly(run)
    folders = [path for path in (run.workdir, *run.workdir.rglob("*")) if path.is_dir()]
    for folder in folders:
        folder.chmod(0o500)
    program = run.complete()
    for folder in folders:
        folder.chmod(0o700)
    log(f"no permission: {program.end()}")
    _check(tally, program, run, undisturbed)
    return tally


def _train_partly(run: Run) -> None:
    with run.start() as program:
        _wait_for_a_checkpoint(program)
        program.send(signal.SIGKILL)
        program.finish()


def _wait_for_a_checkpoint(program: Program) -> None:
    program.wait_until(lambda: program.step() > 30)


def _check(tally: Tally, program: Program, run: Run, undisturbed: comparison.Result) -> None:
    """Checks that the program exited with one error line, and that the run resumes."""
    tally.message = program.error() or tally.message
    if not program.error() or program.finish() != 1 or program.line_with("Traceback"):
        tally.lose(f"no error line, but {program.end()}")
    else:
        comparison.complete_and_compare(tally, run, undisturbed)
