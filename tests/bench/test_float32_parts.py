"""Both instruction sets take the turns that are theirs, and the one that was chosen stays."""

import pytest

from bench import float32_parts
from plr_kernels import extension


def test_each_instruction_set_has_its_turns():
    if extension._cpp.instruction_set(float32_parts.PARTS) is None:
        pytest.skip("this CPU has no AMX tiles of bfloat16")
    chosen, turns = extension._instruction_set, []
    found = float32_parts.in_turns(lambda: turns.append(extension._instruction_set), rounds=3)
    vectors, parts = float32_parts.VECTORS, float32_parts.PARTS
    assert turns == [parts, vectors, vectors, parts, parts, vectors, vectors, parts]
    assert extension._instruction_set == chosen
    assert [len(seconds) for seconds in found["seconds"].values()] == [3, 3]
    assert len(found["ratios"]) == 3


def test_every_loss_makes_all_gradients():
    for name, run in float32_parts.losses(1100, 32, 64).items():
        assert [gradient.isfinite().all().item() for gradient in run()] == [True, True], name
