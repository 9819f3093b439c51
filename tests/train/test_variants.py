"""Every objective, target, encoder and view trains, resumes to the bit, and exports."""

import shutil

import jax
import numpy as np
import pytest
from encoders import random_encoder
from tiny import tiny_config

import byol_jax
from byol_jax import models, objectives
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import run as run_lib
from byol_jax.runs import tree
from byol_jax.train import loop

NO_CONVNET = {"encoder.channels": None, "encoder.features": None}
CONVNEXT = NO_CONVNET | {
    **{"encoder.name": "convnext_t", "encoder.drop_path": 0.5},
    **{"encoder.stage_sizes": (1, 1), "encoder.stage_channels": (4, 6)},
}
OFF_BY_DEFAULT = {  # views
    **dict.fromkeys(("vertical_flip_prob", "quarter_turn_prob", "rotation_prob"), 0.5),
    **{"noise_prob": 0.5, "erase_prob": 0.5, "pad": 2, "mask_share": 0.3},
}
# Several in one run where they do not meet: compilation is what takes the time.
VARIANTS = {
    "moco_v3": {"target.rule": "copy", "target.every_steps": 2},
    "byol_negatives": {"target.rule": "redraw", "target.every_steps": 2},
    "triplet": {"batch_size": 4, "target.tau_schedule": "constant"},  # one row on each device
    "info_nce": {
        f"views.view{i}.{key}": value for i in (1, 2) for key, value in OFF_BY_DEFAULT.items()
    },
    "simsiam": CONVNEXT,  # it compiles slowly, and a target network would double that
    "barlow_twins": {"augment.adversarial_norm": 1.0},
    "vicreg": {},
    "byol": {"target.rule": "none"},
    "byol, multi_crop": {  # an encoder that takes images of any size
        **NO_CONVNET,
        **{"encoder.name": "vit_ti", "encoder.pool": "mean", "encoder.drop_path": 0.5},
        **{"encoder.freeze_patch_embedding": True, "encoder.patch_size": 4},
        **{"encoder.width": 8, "encoder.heads": 1, "encoder.depth": 1},
        **{"crop.local_views": 1, "crop.local_size": 8},
    },
}


def variant(**settings):
    config = tiny_config()
    config.steps, config.checkpoint.every_steps, config.evaluation.every_steps = 4, 1, 0
    config.checkpoint.keep = 4
    for key, value in settings.items():
        tree.put(config, key, value)
    return config


def check_resume(config, run, killed):
    """Continues a copy of a run of four steps from step 2, and compares the ends."""
    shutil.copytree(run, killed)
    for step in (3, 4):  # as after a kill at step 3, before it was saved
        shutil.rmtree(killed / "checkpoints" / str(step))
    assert loop.train(config, killed)
    want, found = (jax.tree.leaves(run_lib.restore(workdir).state) for workdir in (run, killed))
    for a, b in zip(found, want, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_resumes_and_exports(name, tmp_path):
    config = variant(**{"objective.name": name.split(",")[0]} | VARIANTS[name])
    assert loop.train(config, tmp_path / "run")
    check_resume(config, tmp_path / "run", tmp_path / "killed")
    model = byol_jax.load(tmp_path / "run")
    encoder_lib.save(model, tmp_path / "export")
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), np.uint8)
    np.testing.assert_array_equal(
        byol_jax.load(tmp_path / "export").embed(images), model.embed(images)
    )


def test_every_objective_is_among_them():
    assert {name.split(",")[0] for name in VARIANTS} == {*objectives.OBJECTIVES}


def test_a_teacher_of_another_architecture(tmp_path):
    """Its encoder is as it was, to the bit, and the wrong flags name the right ones."""
    shape = {"stem": "strided", "width_multiplier": 0.25}
    teacher = random_encoder("resnet8", image_size=16, channels=1, **shape)
    encoder_lib.save(teacher, tmp_path / "export")
    init = {"init.target_encoder": str(tmp_path / "export"), "target.rule": "frozen"}
    with pytest.raises(byol_jax.errors.UserError, match=r"--config\.target\.encoder\.name=resnet8"):
        loop.train(variant(**init), tmp_path / "student")
    other = {"name": "resnet8"} | shape
    config = variant(**init, **{f"target.encoder.{key}": value for key, value in other.items()})
    assert loop.train(config, tmp_path / "student")
    check_resume(config, tmp_path / "student", tmp_path / "killed")
    trained = run_lib.restore(tmp_path / "student")
    assert isinstance(trained.learner.target.encoder, models.ResNet)
    assert isinstance(trained.learner.online.encoder, models.ConvNet)
    for a, b in zip(
        jax.tree.leaves(trained.state.target_params["encoder"]),
        jax.tree.leaves(teacher.variables["params"]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
