"""Random streams: the same key gives the same numbers, different keys give different ones."""

import itertools

import numpy as np
import pytest
import torch

from metarl_l2f.training.seeding import Stream, generator, torch_generator


def draw(seed, stream, *keys):
    return tuple(generator(seed, stream, *keys).integers(2**63, size=2))


def test_a_key_always_gives_the_same_numbers():
    generator(3, Stream.TASKS, 7).random(1000)
    assert draw(3, Stream.TASKS, 7) == draw(3, Stream.TASKS, 7)
    assert draw(3, Stream.TASKS, 7) == draw(np.int64(3), Stream.TASKS, np.uint8(7))


def test_numbers_stay_what_they_are_from_version_to_version():
    assert generator(1, Stream.TASKS, 2, 3).bit_generator.random_raw() == 0xF03D96B3461C8F5F
    assert torch_generator(1, Stream.INIT).initial_seed() == 0x8C5A8111033DA49D


def test_every_part_of_the_key_matters():
    keys = [(1, Stream.TASKS, 2, 3), (0, Stream.TASKS, 2, 3), (1, Stream.POLICY, 2, 3), (1, Stream.TASKS, 3, 2)]
    assert len({draw(*key) for key in keys}) == len(keys)


def test_streams_of_one_seed_differ_and_keep_their_numbers():
    assert len({draw(0, stream) for stream in Stream}) == len(Stream)
    numbers = {"INIT": 0, "TASKS": 1, "POLICY": 2, "VALIDATION": 4, "EVALUATION": 5, "DATA": 6, "LAYERS": 9}
    assert {stream.name: stream.value for stream in Stream} == numbers


def test_keys_of_different_lengths_differ_even_by_trailing_zeros():
    # numpy alone takes them for one and the same.
    same = np.random.SeedSequence([1, 2]).generate_state(2) == np.random.SeedSequence([1, 2, 0]).generate_state(2)
    assert same.all()
    keys = [(0,) * length for length in range(8)]
    assert len({draw(0, Stream.INIT, *key) for key in keys}) == len(keys)


def test_a_large_number_differs_from_two_small_ones():
    # 2³² is the words (0, 1); 1 + 2³² is (1, 1).
    assert draw(0, Stream.TASKS, 2**32) != draw(0, Stream.TASKS, 0, 1)
    assert draw(0, Stream.TASKS, 1 + 2**32) != draw(0, Stream.TASKS, 1, 1)
    assert draw(2**64 - 1, Stream.TASKS) != draw(2**32 - 1, Stream.TASKS)


def test_all_small_keys_differ():
    keys = [key for length in range(4) for key in itertools.product(range(5), repeat=length)]
    assert len({draw(0, Stream.TASKS, *key) for key in keys}) == len(keys)


def test_neighbouring_tasks_are_uncorrelated():
    samples = np.stack([generator(0, Stream.DATA, 1, task).standard_normal(10_000) for task in range(4)])
    # The correlation of independent samples has standard deviation 1/√10000 = 0.01.
    np.testing.assert_allclose(np.corrcoef(samples), np.eye(4), atol=0.05)


def test_networks_are_initialised_by_the_same_keys():
    def weights(*key):
        return torch.randn(8, generator=torch_generator(*key))

    torch.testing.assert_close(weights(0, Stream.INIT, 1), weights(0, Stream.INIT, 1), rtol=0, atol=0)
    assert not torch.equal(weights(0, Stream.INIT), weights(0, Stream.INIT, 0))
    assert not torch.equal(weights(0, Stream.INIT), weights(1, Stream.INIT))


@pytest.mark.parametrize("make", [generator, torch_generator])
@pytest.mark.parametrize("number", [-1, 0.5, 2**64, "1", None])
def test_only_whole_numbers_from_zero_make_a_key(make, number):
    with pytest.raises(ValueError, match=r"seed of a random stream must be an integer from 0 .* got"):
        make(number, Stream.INIT)
    with pytest.raises(ValueError, match=r"keys\[1\] of a random stream must be an integer from 0"):
        make(0, Stream.INIT, 5, number)
