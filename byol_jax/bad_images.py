"""The images that a run replaced as they could not be read: bad_images.jsonl, and a summary."""

import json

from byol_jax.files import AnyPath, is_local, write_whole

NAMED = 5  # images that the summary names


class BadImages:
    """Keeps one line for each image and step, {"step": 7, "image": "PATH: reason"}.

    Carries on where the run does: lines of steps that will be taken again are dropped.
    """

    def __init__(self, path: AnyPath, start_step: int):
        """Keeps lines of `path`, if it exists, up to `start_step`; made with the first image."""
        self._path = path
        kept = [row for row in _read(path) if row["step"] <= start_step]
        self._lines = [json.dumps(row) + "\n" for row in kept]
        if path.exists():
            self._rewrite()
        # Unlike a set, a dictionary knows what came first.
        self._images = dict.fromkeys(row["image"] for row in kept)
        self._step, self._of_step = start_step, set()

    def __call__(self, step: int, image: str) -> None:
        """Adds an image that update number `step` did without; once for each step."""
        if step != self._step:
            self._step, self._of_step = step, set()
        if image in self._of_step:
            return
        self._of_step.add(image)
        self._images.setdefault(image)
        self._lines.append(json.dumps({"step": step, "image": image}) + "\n")
        if not is_local(self._path):  # a file there cannot be added to
            self._rewrite()
            return
        with self._path.open("a") as file:
            file.write(self._lines[-1])

    def summary(self) -> str | None:
        """How many, which ones and where they are listed; None where there were none."""
        if not self._lines:
            return None
        first = list(self._images)[:NAMED]
        more = len(self._images) - len(first)
        names = "; ".join(first) + (f"; and {more} more" if more else "")
        times = f"{len(self._lines)} time{'s' if len(self._lines) > 1 else ''}"
        return (
            f"Images that could not be read were replaced {times}, {len(self._images)} different "
            f"one{'s' if len(self._images) > 1 else ''} ({names}): {self._path} lists them."
        )

    def _rewrite(self) -> None:
        write_whole(self._path, "".join(self._lines).encode())


def _read(path: AnyPath) -> list[dict]:
    """The lines of a list; nothing after one that a fault cut short."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            rows.append({"step": int(row["step"]), "image": str(row["image"])})
        except (ValueError, TypeError, KeyError):
            break
    return rows
