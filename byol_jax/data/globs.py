"""The files that a pattern matches: their labels are the folders that they are in.

PATTERN is of Python's pathlib: * and ? stand for characters of a name, [ab] for one of some, and **
for any number of folders, such as /data/**/*.jpg. The root is the folder before the first of these,
and labels are as in files.py: the folders at the top of the root. {split} in a pattern stands for
the name of the split; a pattern without it is the split "train". Files and folders below the root
whose name starts with a dot are skipped, and so are links to folders where ** stands.
"""

from pathlib import Path

from byol_jax.data import files
from byol_jax.errors import DataError

SPLIT = "{split}"
MAGIC = frozenset("*?[")


def find(pattern: str, split: str, extensions: tuple[str, ...], what: str) -> files.Files:
    """The files that a pattern matches, sorted.

    Args:
      pattern: as described above.
      split: "train", or any with {split} in the pattern.
      extensions: of the files, in lower case; others are left out.
      what: the files are, for messages, such as "images".

    Raises:
      DataError: the pattern cannot be used, or matches no such file.
    """
    name = f"glob:{pattern}"
    files.check_local("glob", pattern)
    if SPLIT not in pattern and split != "train":
        raise DataError(
            f"{name} has no split {split!r}: write {SPLIT} in the pattern, where the name of the "
            "split is."
        )
    path = Path(pattern.replace(SPLIT, split)).expanduser()
    parts = path.parts
    fixed = next((i for i, part in enumerate(parts) if MAGIC & {*part}), len(parts))
    if fixed == len(parts):
        raise DataError(f"{name} has no *, ? or [: name a folder as folder:PATH.")
    root, rest = Path(*parts[:fixed]), parts[fixed:]
    for part in rest:
        if "**" in part and part != "**":
            raise DataError(f"{name} has {part}: ** stands alone between slashes, as in **/*.jpg.")
    if rest[-1] == "**":  # which stands for folders alone, or for files too, as the Python is
        rest = (*rest, "*")
    try:
        matched = sorted(map(str, root.glob("/".join(rest))))
    except (OSError, ValueError) as error:
        raise DataError(f"{name} cannot be used ({error}): check the pattern.") from error
    flat, by_class, left_out = [], {}, 0
    for found, below in zip(matched, files.below(root, matched), strict=True):
        if any(part.startswith(".") for part in below.split("/")) or not Path(found).is_file():
            continue
        top, _, deeper = below.partition("/")
        if not below.lower().endswith(extensions):
            left_out += 1
        elif deeper:
            by_class.setdefault(top, []).append(found)
        else:
            flat.append(found)
    arranged = files.arranged(root, flat, dict(sorted(by_class.items())), what)
    others = f"files with other names than {', '.join(extensions)}: {left_out}"
    if not arranged.paths:
        also = f" It does match {others}." if left_out else ""
        raise DataError(
            f"{name} matches no {what} (split {split!r}): check the pattern, and quote it for the "
            f"shell.{also}"
        )
    if left_out:
        arranged.warnings.append(f"Left out by glob: {others}.")
    return arranged
