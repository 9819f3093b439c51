"""Kinds of data: what a run needs to know about its examples, around an algorithm that does not.

kind.py has the interface; each kind is a file that implements it. `config.data.kind` names it. A
new kind is a file here and a line in KINDS. Its sources are in data/, its views in augment/, its
encoders in models/, and its settings in a preset.
"""

from ml_collections import ConfigDict

from byol_jax.errors import ConfigError
from byol_jax.runs.kinds.audio import Audio
from byol_jax.runs.kinds.image_text import ImageText
from byol_jax.runs.kinds.images import Images
from byol_jax.runs.kinds.interactions import Interactions
from byol_jax.runs.kinds.kind import Kind
from byol_jax.runs.kinds.signals import Signals
from byol_jax.runs.kinds.text import Text
from byol_jax.runs.kinds.video import Video

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (Images(), Signals(), Audio(), Video(), Text(), ImageText(), Interactions())
}


def get(name: str) -> Kind:
    """The kind of this name; raises ConfigError if there is none."""
    if not isinstance(name, str) or name not in KINDS:
        raise ConfigError(f"config.data.kind={name!r} is not one of {', '.join(KINDS)}.")
    return KINDS[name]


def of(config: ConfigDict) -> Kind:
    """The kind of a run's data."""
    return get(config.data.kind)


def of_record(record: dict) -> Kind:
    """The kind of an `Encoder`'s inputs, by its `config`; images if that names none."""
    return get(record.get("kind", Images.name))


def require_images(kind: str, what: str) -> None:
    """Raises ConfigError, which begins with `what`, for other data than images."""
    if kind != Images.name:
        raise ConfigError(f"{what} is for images, not for {kind}.")


__all__ = ["KINDS", "Interactions", "Kind", "get", "of", "of_record", "require_images"]
