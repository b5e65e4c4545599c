"""The benchmark's steps train, and its ratios are of the same round."""

from bench import sampled_losses


def test_every_way_is_measured_in_every_round():
    seconds = sampled_losses.measured("plr", items=40, dim=8, rounds=2)
    assert seconds.keys() == sampled_losses.WAYS.keys()
    assert all(len(each) == 2 and min(each) > 0 for each in seconds.values())


def test_ratios_are_taken_round_by_round():
    seconds = {"softmax": [6.0, 8.0], "sampled_softmax": [2.0, 4.0]}
    assert sampled_losses.ratios(seconds, "sampled_softmax") == [3.0, 2.0]
