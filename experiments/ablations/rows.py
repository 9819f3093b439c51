"""What docs/ablations.md varies: each row is a name, a description, and the flags that it adds."""

from typing import NamedTuple


class Row(NamedTuple):
    """One variant of a recipe."""

    name: str  # of its results
    what: str  # as the page calls it
    flags: tuple[str, ...] = ()  # {recipe} stands for the run of the row "recipe", of the same seed


class Table(NamedTuple):
    """A recipe and its variants, all of the same length."""

    preset: str
    flags: tuple[str, ...]
    rows: tuple[Row, ...]


def _row(name: str, what: str, *settings: str) -> Row:
    return Row(name, what, tuple(f"--config.{setting}" for setting in settings))


def _views(name: str, what: str, *settings: str) -> Row:
    """A row that sets fields of both views."""
    return _row(name, what, *(f"views.view{i}.{setting}" for i in (1, 2) for setting in settings))


def _without(*parts: str, what: str = "") -> Row:
    name = "without_" + "_".join(parts)
    return _row(name, what or f"no {parts[0]}", f"disable_augmentations={','.join(parts)}")


RECIPE = _row("recipe", "(the recipe itself)")


def _decay(name: str, what: str, tau: float, schedule: str, renewals: float) -> Row:
    """A decay of the target, and the sum of 1 - tau over 400 steps."""
    settings = (f"target.tau_base={tau}", f"target.tau_schedule={schedule}")
    return _row(f"{name}_{tau}", f"{what}: sum {renewals:.0f}", *settings)


SCHEDULES = (
    *(
        _decay("rising", f"tau rises from {tau} to 1", tau, "cosine", 200 * (1 - tau))
        for tau in (0.5, 0.8, 0.95)
    ),
    *(
        _decay("constant", f"tau constant {tau}", tau, "constant", 400 * (1 - tau))
        for tau in (0.0, 0.5, 0.8, 0.9, 0.95)
    ),
)
OBJECTIVES = (
    *(
        _row(name, what, f"objective.name={name}")
        for name, what in {
            "byol_negatives": "BYOL with negatives",
            "info_nce": "InfoNCE (SimCLR)",
            "moco_v3": "MoCo v3",
            "triplet": "triplet, semi-hard",
            "simsiam": "SimSiam",
            "barlow_twins": "Barlow Twins",
            "vicreg": "VICReg",
        }.items()
    ),
    _row("no_predictor", "no predictor", "heads.predictor_layers=0"),
)
TARGETS = (
    _row("rising", "tau rises to 1", "target.tau_schedule=cosine"),
    _row("copy_10", "target copied every 10 updates", "target.rule=copy", "target.every_steps=10"),
    _row("redraw_1", "target drawn anew every update", "target.rule=redraw"),
    _row(
        "redraw_100",
        "target drawn anew every 100 updates",
        "target.rule=redraw",
        "target.every_steps=100",
    ),
    _row("frozen", "target random and fixed", "target.rule=frozen"),
    _row(
        "pretrained",
        "target pre-trained (the first row) and fixed",
        "target.rule=frozen",
        "init.target_encoder={recipe}",
    ),
    _row("no_target", "no target network", "target.rule=none"),
)
COLOUR_REMOVED = (
    _without("color", what="no colour changes (jitter and gray)"),
    _without("gray"),
)
VIEWS_REMOVED = (
    _without("crop"),
    _without("flip"),
    _without("jitter"),
    _without("solarize"),
    _without("asymmetry", what="both views from one distribution"),
)
# What the recipes below have on; one of these is left where it stands alone.
ON = ("crop", "flip", "jitter", "gray", "solarize")
NEW = {
    "vertical_flip": ("vertical flip", "vertical_flip_prob=0.5"),
    "quarter_turn": ("quarter turns", "quarter_turn_prob=0.75"),
    "rotation": ("rotation", "rotation_prob=1"),
    "pad": ("pad and crop", "pad=4"),
    "noise": ("noise", "noise_prob=1"),
    "erase": ("one erased block", "erase_prob=1"),
    "mask": ("masked patches", "mask_share=0.3"),
}
VIEWS_ADDED = (
    *(_views(name, what, setting) for name, (what, setting) in NEW.items()),
    _row(
        "multi_crop",
        "two local views",
        "crop.local_views=2",
        "crop.local_size=16",
        "crop.local_area_min=0.05",
        "crop.local_area_max=0.3",
    ),
    _row("adversarial", "adversarial views", "augment.adversarial_norm=3"),
)


def _alone(name: str, what: str, *flags: str) -> Row:
    """Views that only this makes different."""
    others = ",".join(part for part in ON if part != name)
    return Row(
        f"only_{name}", f"{what} alone", (f"--config.disable_augmentations={others}", *flags)
    )


VIEWS_ALONE = (
    _alone("nothing", "two equal views: nothing"),
    *(_alone(name, name) for name in ON),
    *(_alone(name, what, *_views("", "", setting).flags) for name, (what, setting) in NEW.items()),
)
ENCODERS = (
    _row(
        "vit",
        "ViT of 4 layers, width 96, patches of 4",
        "encoder.name=vit_ti",
        "encoder.patch_size=4",
        "encoder.width=96",
        "encoder.depth=4",
    ),
    _row("convnet", "three convolutions and a dense layer", "encoder.name=convnet"),
    _row(
        "resnet10",
        "ResNet-10, a quarter of the width",
        "encoder.name=resnet10",
        "encoder.width_multiplier=0.25",
    ),
)
TABLES = {
    "schedules": Table("quickstart", ("--config.steps=400",), SCHEDULES),
    "quickstart": Table(
        "quickstart",
        ("--config.steps=400",),
        (RECIPE, *OBJECTIVES, *TARGETS, *VIEWS_REMOVED[:3], *VIEWS_ADDED),
    ),
    "cifar10": Table(
        "cifar10_small",
        (
            "--config.epochs=0",
            "--config.steps=600",
            "--config.log_every_steps=50",
            "--config.knn.every_steps=600",
            "--config.optimizer.warmup_epochs=0.1",
            "--config.target.tau_base=0.67",
            "--config.target.tau_schedule=constant",
        ),
        (
            RECIPE,
            *OBJECTIVES,
            *TARGETS,
            *ENCODERS,
            *VIEWS_REMOVED,
            *COLOUR_REMOVED,
            *VIEWS_ADDED,
            *VIEWS_ALONE,
        ),
    ),
}
