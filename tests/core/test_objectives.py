"""Each objective against plain NumPy: its value, its gradients, its limits, and on four devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import models, objectives, parallel
from byol_jax.byol import byol_objective

# The names of the arrays of a pair of views: predictions, projections, targets.
NAMES = ("q1", "q2", "z1", "z2", "t1", "t2")
ROWS, SIZE = 8, 5


@pytest.fixture(scope="module")
def arrays():
    """Two views of eight examples: each array is like the others of its example, in part."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(ROWS, SIZE))
    return {name: shared + 0.7 * rng.normal(size=(ROWS, SIZE)) for name in NAMES}


def compute(objective, arrays, axis_name=None):
    """Loss and metrics of float32 arrays by name."""
    q1, q2, z1, z2, t1, t2 = (jnp.asarray(arrays[name], jnp.float32) for name in NAMES)
    online = models.Outputs(None, z1, q1), models.Outputs(None, z2, q2)
    return objective(online, (models.Outputs(None, t1), models.Outputs(None, t2)), axis_name)


# The references take arrays by name, in float64.


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cosine(u, w):
    return np.sum(unit(u) * unit(w), axis=1)


def byol(a):
    return np.mean(2 - 2 * cosine(a["q1"], a["t2"]) + 2 - 2 * cosine(a["q2"], a["t1"]))


def negatives(q, same, other, temperature):
    """ln of the sum over all others of each row."""
    q, same, other = unit(q), unit(same), unit(other)
    logs = []
    for i in range(len(q)):
        terms = [np.exp(q[i] @ z / temperature) for z in other]
        terms += [np.exp(q[i] @ same[j] / temperature) for j in range(len(q)) if j != i]
        logs.append(np.log(sum(terms)))
    return np.mean(logs)


def byol_negatives(a, beta=1.0, temperature=0.1):
    logs = negatives(a["q1"], a["t1"], a["t2"], temperature)
    logs += negatives(a["q2"], a["t2"], a["t1"], temperature)
    return byol(a) + beta * 2 * temperature * logs


def info_nce(a, temperature=0.1):
    logs = negatives(a["z1"], a["z1"], a["z2"], temperature)
    logs += negatives(a["z2"], a["z2"], a["z1"], temperature)
    return (logs - 2 * np.mean(cosine(a["z1"], a["z2"])) / temperature) / 2


def moco_v3(a, temperature=0.2):
    total = 0.0
    for q, t in ((a["q1"], a["t2"]), (a["q2"], a["t1"])):
        logits = unit(q) @ unit(t).T / temperature
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        total -= 2 * temperature * np.mean(np.log(np.diagonal(shares)))
    return total


def triplet(a, margin=1.0, negative="semi-hard"):
    total = 0.0
    for q, t in ((unit(a["q1"]), unit(a["t2"])), (unit(a["q2"]), unit(a["t1"]))):
        for i in range(len(q)):
            positive = np.sum((q[i] - t[i]) ** 2)
            others = [np.sum((q[i] - t[j]) ** 2) for j in range(len(q)) if j != i]
            farther = [d for d in others if d > positive]
            chosen = {
                "hardest": [min(others)],
                "semi-hard": [min(farther) if farther else max(others)],
                "all": others,
            }[negative]
            total += np.mean([max(0.0, margin + positive - d) for d in chosen]) / len(q)
    return total


def simsiam(a, constants):
    z1, z2 = constants["z1"], constants["z2"]
    return -np.mean(cosine(a["q1"], z2) + cosine(a["q2"], z1)) / 2


def barlow_twins(a, off_diagonal=0.0051):
    z1, z2 = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (a["z1"], a["z2"]))
    correlation = z1.T @ z2 / len(z1)
    total = 0.0
    for i in range(SIZE):
        for j in range(SIZE):
            c = correlation[i, j]
            total += (1 - c) ** 2 if i == j else off_diagonal * c**2
    return total


def vicreg(a, invariance=25.0, variance=25.0, covariance=1.0):
    spread = correlated = 0.0
    for z in (a["z1"], a["z2"]):
        spread += np.mean(np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4))) / 2
        c = np.cov(z.T)
        correlated += (np.sum(c**2) - np.sum(np.diagonal(c) ** 2)) / SIZE
    difference = np.mean((a["z1"] - a["z2"]) ** 2)
    return invariance * difference + variance * spread + covariance * correlated


# Objectives by name, their settings, and the reference.
CASES = [
    ("byol", {}, byol),
    ("byol_negatives", {}, byol_negatives),
    ("byol_negatives", {"beta": 0.3, "temperature": 0.5}, byol_negatives),
    ("info_nce", {}, info_nce),
    ("info_nce", {"temperature": 1.0}, info_nce),
    ("moco_v3", {}, moco_v3),
    ("moco_v3", {"temperature": 1.0}, moco_v3),
    ("triplet", {}, triplet),
    ("triplet", {"margin": 0.3}, triplet),
    ("triplet", {"negative": "hardest"}, triplet),
    ("triplet", {"negative": "all", "margin": 0.5}, triplet),
    ("simsiam", {}, simsiam),
    ("barlow_twins", {}, barlow_twins),
    ("barlow_twins", {"off_diagonal": 0.5}, barlow_twins),
    ("vicreg", {}, vicreg),
    ("vicreg", {"invariance": 1.0, "variance": 2.0, "covariance": 3.0}, vicreg),
]
IDS = [" ".join([name, *(f"{k}={v}" for k, v in chosen.items())]) for name, chosen, _ in CASES]


def test_every_objective_has_a_case():
    assert {name for name, _, _ in CASES} == set(objectives.OBJECTIVES)


def reads(name):
    """The arrays that gradients reach, by their first letter."""
    kind = objectives.OBJECTIVES[name]
    return ("q" if kind.predicts else "z") + ("t" if kind.has_target else "")


@pytest.mark.parametrize(("name", "chosen", "reference"), CASES, ids=IDS)
def test_values_and_gradients(arrays, name, chosen, reference):
    """The loss, and central differences of the reference for each number that gradients reach."""
    reference = partial(reference, constants=arrays) if name == "simsiam" else reference
    objective = objectives.make_objective(name, **chosen)
    function = jax.value_and_grad(lambda a: compute(objective, a), has_aux=True)
    (loss, metrics), gradients = jax.jit(function)(arrays)
    assert loss.dtype == jnp.float32 and loss.shape == ()
    np.testing.assert_allclose(loss, reference(arrays, **chosen), rtol=2e-6, atol=2e-6)
    assert metrics.get(f"{name}_loss", loss) == loss
    step = 1e-6
    for key in NAMES:
        want = np.zeros((ROWS, SIZE))
        for index in np.ndindex(ROWS, SIZE):
            sides = []
            for sign in (1, -1):
                moved = arrays[key].copy()
                moved[index] += sign * step
                sides.append(reference(arrays | {key: moved}, **chosen))
            want[index] = (sides[0] - sides[1]) / (2 * step)
        scale = max(np.abs(want).max(), 1e-3)
        np.testing.assert_allclose(gradients[key], want, atol=1e-5 * scale, rtol=1e-4, err_msg=key)
        if key[0] not in reads(name):
            np.testing.assert_array_equal(gradients[key], 0, err_msg=key)


@pytest.mark.parametrize(("name", "chosen"), [case[:2] for case in CASES], ids=IDS)
def test_one_device_equals_four(arrays, name, chosen):
    """The loss of the complete batch, and the mean of the gradients, whichever rows are where."""
    objective = objectives.make_objective(name, **chosen)

    def values(axis_name, a):
        loss_fn = partial(compute, objective, axis_name=axis_name)
        (loss, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(a)
        return loss, metrics, gradients

    rows = 4 if name == "triplet" else ROWS  # one on each device
    arrays = {key: np.float32(x[:rows]) for key, x in arrays.items()}
    loss, metrics, gradients = jax.jit(partial(values, None))(arrays)
    split = {key: x.reshape(4, -1, SIZE) for key, x in arrays.items()}
    losses, shared, parts = jax.pmap(partial(values, parallel.AXIS), axis_name=parallel.AXIS)(split)
    np.testing.assert_allclose(np.mean(losses), loss, rtol=1e-5, atol=1e-6)
    for key, value in metrics.items():
        np.testing.assert_allclose(np.mean(shared[key]), value, rtol=1e-5, atol=1e-6, err_msg=key)
    for key, want in gradients.items():
        # Each replica's loss is the mean of its rows, or that of all: `update` averages gradients.
        got = np.asarray(parts[key]).reshape(rows, SIZE) / 4
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-6, err_msg=key)


def test_beta_zero_is_byol(arrays):
    loss, metrics = compute(objectives.byol_negatives(0.0, 0.1), arrays)
    want, parts = compute(byol_objective, arrays)
    assert loss == want == metrics["byol_loss"] == parts["byol_loss"]


def test_beta_one_without_predictor_and_target_is_simclr(arrays):
    """As in the paper's appendix."""
    own = arrays | {"q1": arrays["z1"], "q2": arrays["z2"]}
    loss, _ = compute(objectives.without_target(objectives.byol_negatives(1.0, 0.3)), own)
    simclr, _ = compute(objectives.info_nce(0.3), arrays)
    np.testing.assert_allclose(loss, 4 * 0.3 * simclr + 4, rtol=1e-5)


def test_simsiam_is_byol_with_constant_own_projections(arrays):
    loss, _ = compute(objectives.simsiam(), arrays)
    byol_loss, _ = compute(byol_objective, arrays | {"t1": arrays["z1"], "t2": arrays["z2"]})
    np.testing.assert_allclose(loss, byol_loss / 4 - 1, rtol=1e-5)


def test_at_a_high_temperature_moco_v3_tends_to_byol(arrays):
    """ln mean e^{x / alpha} tends to mean x / alpha: similarity to all in place of a constant."""
    loss, _ = compute(objectives.moco_v3(1e3), arrays)
    mean = sum(
        np.mean(unit(arrays[q]) @ unit(arrays[t]).T) for q, t in (("q1", "t2"), ("q2", "t1"))
    )
    want = byol(arrays) - 4 + 2 * mean
    np.testing.assert_allclose(loss - 4e3 * np.log(ROWS), want, atol=2e-3)


def test_equal_projections_count_the_candidates():
    """With all similarities equal, the positive is one of 2 n - 1 candidates, or of n."""
    ones = {name: np.ones((ROWS, SIZE)) for name in NAMES}
    np.testing.assert_allclose(compute(objectives.info_nce(0.1), ones)[0], np.log(15), rtol=1e-5)
    loss = compute(objectives.moco_v3(0.5), ones)[0]
    np.testing.assert_allclose(loss, 2 * 2 * 0.5 * np.log(8), rtol=1e-5)


LOCAL = ("3", "4")  # views 3 and 4 are local


@pytest.fixture(scope="module")
def with_local(arrays):
    """The arrays, and two local views, which the target network does not see."""
    rng = np.random.default_rng(1)
    names = [kind + view for view in LOCAL for kind in "qz"]
    return arrays | {name: arrays["z1"] + rng.normal(size=(ROWS, SIZE)) for name in names}


def pairs(a, has_target):
    """What `multi_crop` takes the mean of, with weights: a pair of views is arrays by name."""
    yield 1 / 3, a
    for local in LOCAL:
        q, z = a["q" + local], a["z" + local]
        if has_target:  # it predicts the targets of both global views
            yield 1 / 3, a | {"q1": q, "q2": q}
        else:  # it is the other view of each global one
            for view in "12":
                own = {"q1": a["q" + view], "z1": a["z" + view], "q2": q, "z2": z}
                yield 1 / 6, a | own


def compute_all(of_all, a, axis_name=None, views=("1", "2", *LOCAL)):
    """`compute` with local views."""
    a = {name: jnp.asarray(x, jnp.float32) for name, x in a.items()}
    online = tuple(models.Outputs(None, a["z" + view], a["q" + view]) for view in views)
    target = tuple(models.Outputs(None, a["t" + view]) for view in "12")
    return of_all(online, target, axis_name)


@pytest.mark.parametrize("name", [*objectives.OBJECTIVES, "no target"])
def test_local_views_are_compared_with_the_global_ones(with_local, name):
    """The loss, and for each array the slope of the reference in a random direction."""
    if name == "no target":
        objective, has_target = objectives.without_target(byol_objective), False
        reference = lambda a: byol(a | {"t1": a["z1"], "t2": a["z2"]})  # noqa: E731
    else:
        objective = objectives.make_objective(name)
        has_target = objectives.OBJECTIVES[name].has_target
        reference = next(case for key, chosen, case in CASES if key == name and not chosen)
    of_all = objectives.multi_crop(objective, has_target)

    def want(a):
        if name == "simsiam":
            both = zip(pairs(a, has_target), pairs(with_local, has_target), strict=True)
            return sum(weight * simsiam(pair, constants) for (weight, pair), (_, constants) in both)
        return sum(weight * reference(pair) for weight, pair in pairs(a, has_target))

    function = jax.value_and_grad(lambda a: compute_all(of_all, a), has_aux=True)
    (loss, metrics), gradients = jax.jit(function)(with_local)
    np.testing.assert_allclose(loss, want(with_local), rtol=2e-6, atol=2e-6)
    assert metrics and all(x.shape == () for x in metrics.values())
    rng, step = np.random.default_rng(2), 1e-6
    for key, x in with_local.items():
        direction = rng.normal(size=x.shape)
        up, down = (want(with_local | {key: x + sign * step * direction}) for sign in (1, -1))
        got = np.sum(gradients[key] * direction)
        np.testing.assert_allclose(got, (up - down) / (2 * step), 1e-4, 1e-5, err_msg=key)


@pytest.mark.parametrize("name", ["byol", "vicreg"])
def test_without_local_views_it_is_the_objective_itself(with_local, name):
    kind, objective = objectives.OBJECTIVES[name], objectives.make_objective(name)
    of_all = objectives.multi_crop(objective, kind.has_target)
    got = compute_all(of_all, with_local, views="12")
    jax.tree.map(np.testing.assert_array_equal, got, compute(objective, with_local))


@pytest.mark.parametrize("name", ["byol_negatives", "vicreg"])
def test_local_views_on_one_device_equal_four(with_local, name):
    of_all = objectives.multi_crop(
        objectives.make_objective(name), objectives.OBJECTIVES[name].has_target
    )

    def values(axis_name, a):
        return jax.value_and_grad(lambda a: compute_all(of_all, a, axis_name)[0])(a)

    arrays = {key: np.float32(x) for key, x in with_local.items()}
    loss, gradients = jax.jit(partial(values, None))(arrays)
    split = {key: x.reshape(4, 2, SIZE) for key, x in arrays.items()}
    losses, parts = jax.pmap(partial(values, parallel.AXIS), axis_name=parallel.AXIS)(split)
    np.testing.assert_allclose(np.mean(losses), loss, rtol=1e-5)
    for key, want in gradients.items():
        got = np.asarray(parts[key]).reshape(ROWS, SIZE) / 4
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-6, err_msg=key)


@pytest.mark.parametrize("name", list(objectives.OBJECTIVES))
def test_gradients_of_collapsed_outputs_are_finite(name):
    same = {key: np.zeros((ROWS, SIZE), np.float32) for key in NAMES}
    objective = objectives.make_objective(name)
    gradients = jax.jit(jax.grad(lambda a: compute(objective, a)[0]))(same)
    assert all(np.isfinite(x).all() for x in gradients.values())


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("nce", {}, "name='nce' is not one of byol, byol_negatives, info_nce"),
        ("byol", {"beta": 1.0}, "beta=1.0 is not a setting of byol, which has none."),
        ("triplet", {"beta": 1.0}, "beta=1.0 is not a setting of triplet, which has margin, neg"),
        ("triplet", {"negative": "easy"}, "negative='easy' is not one of hardest, semi-hard, all"),
        ("triplet", {"margin": 0.0}, "margin=0 must be above 0"),
        ("info_nce", {"temperature": 0.0}, "temperature=0 must be at least 1e-06"),
        ("moco_v3", {"temperature": float("nan")}, "temperature=nan must be at most 1e"),
        ("byol_negatives", {"beta": -1.0}, "beta=-1 must be at least 0"),
        ("barlow_twins", {"off_diagonal": "a"}, "off_diagonal='a' must be of type float"),
        ("vicreg", {"covariance": float("inf")}, "covariance=inf must be at most 1e"),
    ],
)
def test_wrong_settings_are_refused_by_name(name, chosen, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        objectives.make_objective(name, **chosen)


def test_a_hinge_that_is_always_open_is_byol_and_a_mean(arrays):
    """With a margin of 4, as distances lie within 0..4."""
    found, _ = compute(objectives.triplet(4.0, "all"), arrays)
    others = 0
    for q, t in (("q1", "t2"), ("q2", "t1")):
        distances = 2 - 2 * unit(arrays[q]) @ unit(arrays[t]).T
        others += (distances.sum() - np.trace(distances)) / (ROWS * (ROWS - 1))
    np.testing.assert_allclose(found, 8 + byol(arrays) - others, rtol=1e-6)


def test_the_invariance_of_vicreg_is_byol_without_predictor_and_target(arrays):
    z1, z2 = unit(arrays["z1"]), unit(arrays["z2"])
    found, _ = compute(objectives.vicreg(1.0, 0.0, 0.0), arrays | {"z1": z1, "z2": z2})
    same = byol({"q1": z1, "t2": z2, "q2": z2, "t1": z1})
    np.testing.assert_allclose(2 * SIZE * found, same, rtol=1e-5)


def test_of_standardised_views_vicreg_and_barlow_twins_have_the_same_covariances(arrays):
    z = arrays["z1"] - arrays["z1"].mean(axis=0)
    both = dict.fromkeys(("z1", "z2"), z / z.std(axis=0))
    covariance, _ = compute(objectives.vicreg(0.0, 0.0, 1.0), arrays | both)
    twins, _ = compute(objectives.barlow_twins(0.01), arrays | both)
    unbiased = (ROWS / (ROWS - 1)) ** 2
    np.testing.assert_allclose(covariance, 2 * unbiased / SIZE * twins / 0.01, rtol=1e-4)


@pytest.mark.parametrize("name", ["triplet", "byol_negatives", "moco_v3"])
def test_one_example_has_nothing_to_compare_with(arrays, name):
    one = {key: x[:1] for key, x in arrays.items()}
    with pytest.raises(ValueError, match=r"compares examples .* has one"):
        compute(objectives.make_objective(name), one)
