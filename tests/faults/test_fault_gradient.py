"""Nine in ten sessions, worlds or model servers lost: the gradient's expectation stays, and lost is not zero."""

from __future__ import annotations

from .fault_gradient import grown, shift_over_noise


async def test_sessions_that_die_and_are_replaced_change_no_tree() -> None:
    quiet, shaken = await grown("quiet", 40), await grown("mended", 40)
    assert shaken.digests == quiet.digests and not shaken.lost and shaken.died > 0.6 * shaken.sessions
    assert (shaken.gradients == quiet.gradients).all()


async def test_trees_lost_for_good_are_unknown_and_the_rest_is_no_other_sample() -> None:
    quiet, known = await grown("quiet", 150), await grown("for_good", 1000, seed=2)
    assert 0.85 < known.lost / known.trees < 0.95 and known.zero_rewards == 0
    assert shift_over_noise(known.gradients, quiet.gradients) < 3
    mistaken = await grown("as_zero", 150, seed=2)
    assert shift_over_noise(mistaken.gradients, quiet.gradients) > 3, "the check sees lost endings taken as failures"
