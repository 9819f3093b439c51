"""How often a run replaces the weights of its target network, and the decay for a wanted number."""

RENEWALS = 200  # in a run, at least: docs/ablations.md, "Short runs"; 156 to 626 in the paper's
FEW_RENEWALS = 50  # slow enough for a warning


def renewals(tau_base: float, schedule: str, steps: int) -> float:
    """The sum of 1 - tau over a run: how many times it replaces the target's weights.

    Args:
      tau_base: decay at step 0.
      schedule: "cosine", on which 1 - tau is half of that at step 0 on average; or "constant".
      steps: of the run.
    """
    return _share(schedule) * steps * (1 - tau_base)


def fitting_decay(schedule: str, steps: int) -> float:
    """tau_base, 0.5 or more, with which so many steps replace the target RENEWALS times."""
    return max(0.5, 1 - RENEWALS / (_share(schedule) * steps))


def _share(schedule: str) -> float:
    """The mean of 1 - tau, as a share of 1 - tau_base."""
    return 1.0 if schedule == "constant" else 0.5
