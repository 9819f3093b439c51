"""The page of all settings: keys and defaults from the config, words from the comments beside them.

A key is described where it gets its default: by the comment at the end of the line, and those
above. Settings of views are fields of dataclasses in byol_jax/augment, described likewise.
"""

import ast
import dataclasses
import importlib
import inspect
import io
import pkgutil
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import byol_jax
from byol_jax import augment, models, objectives
from byol_jax.runs import config as config_lib
from byol_jax.runs import kinds, tree

RUNS = Path(byol_jax.__file__).parent / "runs"
FIRST = "images"  # the kind whose settings come first; of the others, what differs
PARTS = {  # of the page; other sections follow under their own names
    "": "The run",
    "data": "Data",
    "heads": "Projector and predictor",
    "objective": "Objective",
    "target": "Target network",
    "init": "What a run starts from",
    "optimizer": "Optimiser",
    "checkpoint": "Checkpoints",
    "evaluation": "Evaluation during training",
    "health": "Health",
    "crop": "Crops",
    "views": "Views",
    "augment": "Augmentation by functions",
}
INTRODUCTION = """# Settings

Every setting is a flag, such as `--config.batch_size=512`, and a key of the file that
`--write_config` writes. Defaults here are the paper's for ImageNet. A [preset](presets.md) changes
some of them, and `byol-jax pretrain FOLDER` chooses them by the images and the machine. The
`config.json` of a run has those that it was trained with.

`None` is decided when the run starts. `VIEW` is `view1` or `view2`; two defaults are those of the
two.
"""


def page() -> str:
    """Markdown: a table for each section of the config, the encoders, then other kinds of data."""
    first, first_words = _defaults(FIRST), _words(FIRST)
    parts = [INTRODUCTION, *_sections(first, first_words, "##"), *_encoders(), *_objectives()]
    for kind in [kind for kind in kinds.KINDS if kind != FIRST]:
        values, words = _defaults(kind), _words(kind)
        for key in [*values]:
            same_words = _said(key, words) == _said(key, first_words)
            if key == "data.kind" or (key in first and first[key] == values[key] and same_words):
                del values[key]
        parts.append(f"## Data of the kind {kind}\n\nWhat differs from images.\n")
        parts += _sections(values, words, "###", f"{kind}: ")
    return "\n".join(parts)


def comments(*sources: str) -> dict[str, str]:
    """By the key that a line sets, `config.KEY = ...` or a field of a class, what is said about it.

    Keys are in the order of the lines; of a key that several lines set, the first counts.
    """
    found: dict[str, str] = {}
    for source in sources:
        lines = source.splitlines()
        at_end = {}
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip():
                at_end[token.start[0]] = token.string
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            key = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            said, above = [], node.lineno - 2
            while above >= 0 and lines[above].lstrip().startswith("#"):
                said.insert(0, lines[above])
                above -= 1
            said.append(at_end.get(node.end_lineno, ""))
            text = " ".join(line.strip().removeprefix("#").strip() for line in said).strip()
            found.setdefault(key.removeprefix("config."), text)
    return found


def _defaults(kind: str) -> dict[str, Any]:
    """The defaults of a kind by dotted key, without those of encoders."""
    config = config_lib.default(kind)
    encoders = tuple(f"{section}." for section in config_lib.encoder_sections(config))
    return {k: v for k, v in tree.flat(config).items() if not k.startswith(encoders)}


def _words(kind: str) -> dict[str, str]:
    """What is said about the settings of a kind; fields of classes by their names alone."""
    shared = ["image_settings", "text_settings"]
    names = shared if kind == FIRST else [kind, *shared]
    files = [RUNS / "kinds" / f"{name}.py" for name in names]
    files = [RUNS / "config.py", *filter(Path.is_file, files)]
    keys = {key.rpartition(".")[2] for key in _defaults(kind)}
    return comments(*[path.read_text() for path in files]) | _field_words(keys)


def _field_words(keys: set[str]) -> dict[str, str]:
    """What is said about fields of those dataclasses of byol_jax/augment that have only `keys`."""
    said: dict[str, str] = {}
    for module in pkgutil.iter_modules(augment.__path__, "byol_jax.augment."):
        for _, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if not dataclasses.is_dataclass(found) or found.__module__ != module.name:
                continue
            if {field.name for field in dataclasses.fields(found)} <= keys:
                for parent in filter(dataclasses.is_dataclass, found.__mro__):
                    words = comments(textwrap.dedent(inspect.getsource(parent)))
                    said |= {name: text for name, text in words.items() if name not in said}
    return said


def _name(key: str, words: dict[str, str]) -> str:
    """What a key is called in `words`."""
    return key if key in words else key.rpartition(".")[2]


def _said(key: str, words: dict[str, str]) -> str:
    return words.get(_name(key, words), "")


def _sections(
    values: dict[str, Any], words: dict[str, str], heading: str, before: str = ""
) -> list[str]:
    """A heading and a table for each section."""
    rows: dict[str, dict[str, list[str]]] = {}
    order = [*words]
    for key, value in values.items():
        section = key.partition(".")[0] if "." in key else ""
        shared = re.sub(r"(?<=^views\.)view[12](?=\.)", "VIEW", key)
        defaults = rows.setdefault(section, {}).setdefault(shared, [])
        if f"`{value!r}`" not in defaults:
            defaults.append(f"`{value!r}`")
    parts = []
    for section in sorted(rows, key=lambda s: [*PARTS, s].index(s)):
        about = words.get(section)
        parts.append(f"{heading} {before}{PARTS.get(section, section)}\n")
        parts += [f"`config.{section}`: {_linked(about)}\n"] if about else []
        parts += ["| key | default | what |", "|---|---|---|"]
        names = {key: _name(key, words) for key in rows[section]}
        for key in sorted(names, key=lambda key: [*order, names[key]].index(names[key])):
            default = " and ".join(rows[section][key])
            parts.append(f"| `{key}` | {default} | {_linked(_said(key, words))} |")
        parts.append("")
    return parts


def _linked(text: str) -> str:
    """A comment for a cell, with links to the pages that it names."""
    text = text.replace("|", "\\|").replace("*", "\\*")
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text)


def _encoders() -> list[str]:
    """The settings of every encoder."""
    return [
        "## Encoders\n",
        "`config.encoder.name`, and the other keys of `config.encoder` for it. What they mean is",
        "with the classes in [api.md](api.md#networks).\n",
        *_choices(models.ENCODERS, models.settings),
    ]


def _objectives() -> list[str]:
    """The settings of every objective."""
    return [
        "## Objectives\n",
        "`config.objective.name`, and the other keys of `config.objective` for it, which",
        "[ablations.md](ablations.md) describes.\n",
        *_choices(objectives.OBJECTIVES, objectives.settings),
    ]


def _choices(names: Iterable[str], settings: Callable[[str], dict[str, Any]]) -> list[str]:
    rows = [(n, ", ".join(f"`{k}={v!r}`" for k, v in settings(n).items())) for n in names]
    table = [f"| `{name}` | {text or 'none'} |" for name, text in rows]
    return ["| name | settings and their defaults |", "|---|---|", *table, ""]
