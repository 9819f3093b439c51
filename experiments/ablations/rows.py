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


def _of_both_views(settings: str) -> tuple[str, ...]:
    """The flags of fields of both views, which are separated by spaces."""
    return tuple(
        f"--config.views.view{i}.{setting}" for i in (1, 2) for setting in settings.split()
    )


def _without(part: str, what: str = "") -> Row:
    return _row(f"without_{part}", what or f"no {part}", f"disable_augmentations={part}")


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
        _row(
            name.replace(":", "_"),
            what,
            f"objective.name={name.partition(':')[0]}",
            *(f"objective.negative={negative}" for negative in name.split(":")[1:]),
        )
        for name, what in {
            "byol_negatives": "BYOL with negatives",
            "info_nce": "InfoNCE (SimCLR)",
            "moco_v3": "MoCo v3",
            "triplet": "triplet, semi-hard",
            "triplet:hardest": "triplet, hardest",
            "triplet:all": "triplet, all",
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


def _removed(*parts: str) -> tuple[Row, ...]:
    colour = _without("color", what="no colour changes (jitter and gray)")
    equal = _without("asymmetry", what="both views from one distribution")
    return (*map(_without, parts), colour, equal)


def _own(size: int) -> dict[str, tuple[str, str]]:
    """What is off in the recipes, as strong in images of any size."""
    return {
        "vertical_flip": ("vertical flip", "vertical_flip_prob=0.5"),
        "quarter_turn": ("quarter turns", "quarter_turn_prob=0.75"),
        "rotation": ("rotation", "rotation_prob=1"),
        "pad": ("pad and crop", f"pad={size // 8}"),
        "noise": ("noise", "noise_prob=1"),
        "erase": ("one erased block", "erase_prob=1"),
        "mask": ("masked patches", f"mask_share=0.3 mask_patch_size={size // 8}"),
    }


def _added(size: int) -> tuple[Row, ...]:
    return (
        *(Row(name, what, _of_both_views(given)) for name, (what, given) in _own(size).items()),
        _row("function", "a function of one's own: posterize", f"augment.function={POSTERIZE}"),
        _row(
            "multi_crop",
            "two local views",
            "crop.local_views=2",
            f"crop.local_size={size // 2}",
            "crop.local_area_min=0.05",
            "crop.local_area_max=0.3",
        ),
        # The perturbation of each value is then the same for any size.
        _row("adversarial", "adversarial views", f"augment.adversarial_norm={3 * size // 32}"),
    )


def _alone(parts: tuple[str, ...], size: int) -> tuple[Row, ...]:
    """Views that only one of the parts makes different, or what is off in the recipes."""

    def alone(name: str, what: str, *flags: str) -> Row:
        others = ",".join(part for part in parts if part != name)
        off = f"--config.disable_augmentations={others}"
        return Row(f"only_{name}", f"{what} alone", (off, *flags))

    return (
        alone("nothing", "")._replace(what="nothing: two equal views"),
        *(alone(name, name) for name in parts),
        *(alone(name, what, *_of_both_views(given)) for name, (what, given) in _own(size).items()),
    )


def _distilled(*teacher: str) -> Row:
    """The row "pretrained" for another encoder; the teacher's is that of the recipe."""
    return _row(
        "distilled",
        "the same, for the convnet below",
        "target.rule=frozen",
        "init.target_encoder={recipe}",
        "encoder.name=convnet",
        *(f"target.encoder.{setting}" for setting in teacher),
    )


def _encoders(size: int) -> tuple[Row, ...]:
    return (
        _row(
            "vit",
            "ViT of 2 blocks, width 64",
            "encoder.name=vit_ti",
            f"encoder.patch_size={size // 8}",
            "encoder.width=64",
            "encoder.heads=2",
            "encoder.depth=2",
        ),
        _row(
            "convnext",
            "ConvNeXt of 2 stages",
            "encoder.name=convnext_t",
            "encoder.stage_sizes=2,2",
            "encoder.stage_channels=48,96",
        ),
        _row("convnet", "three convolutions, a dense layer", "encoder.name=convnet"),
        _row("own", "a module of one's own: strided convolutions", f"encoder.name={STRIDED}"),
    )


STRIDED = "experiments.ablations.own_encoder:Strided"
POSTERIZE = "experiments.ablations.posterize:posterize"
# What the views of the recipes do.
CIFAR10 = ("crop", "flip", "jitter", "gray", "solarize")
IMAGENETTE = (*CIFAR10, "blur")
SHORT = (
    "--config.epochs=0",
    "--config.steps=600",
    "--config.evaluation.every_steps=600",
    "--config.log_every_steps=20",  # five checks in a row report a collapse
    "--config.optimizer.warmup_epochs=0.1",
    "--config.target.tau_base=0.67",
    "--config.target.tau_schedule=constant",
)
TABLES = {
    "schedules": Table("quickstart", ("--config.steps=400",), SCHEDULES),
    "cifar10": Table(
        "cifar10_small",
        SHORT,
        (
            RECIPE,
            *OBJECTIVES,
            *TARGETS,
            _distilled("name=resnet8", "stem=strided", "width_multiplier=1.5"),
            _row("resnet10", "ResNet-10", "encoder.name=resnet10", "encoder.width_multiplier=0.25"),
            *_encoders(32),
            *_removed(*CIFAR10),
            *_added(32),
            *_alone(CIFAR10, 32),
        ),
    ),
    "imagenette": Table(
        "folder_small",
        (*SHORT, "--config.data.test_split=val"),
        (
            RECIPE,
            *OBJECTIVES,
            *TARGETS,
            _distilled("name=resnet10", "width_multiplier=0.25"),
            *_encoders(64),
            *_removed(*IMAGENETTE),
            *_added(64),
            *_alone(IMAGENETTE, 64),
        ),
    ),
}
