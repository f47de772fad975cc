"""A shuffle of which every place can be computed by itself."""

from __future__ import annotations

import jax.numpy as jnp

from kayn.support.arrays import Array

ROUNDS = 24
ROWS = 2 * ROUNDS + 1
"""Random numbers that a shuffle takes."""


def shuffled(numbers: Array, places: Array, count: Array | int) -> Array:
    """Where places below `count` come to, by random bits [ROWS, ...] for each of the other entries: uint32.

    A random rotation, then rounds of swap-or-not (Hoang, Morris & Rogaway, An enciphering scheme based on a card
    shuffle, 2012): in every round random partners trade places or not. Every place is exactly uniform, and this is far
    quicker than sorting random numbers.
    """
    count = jnp.asarray(count, numbers.dtype)
    drawn, coins = numbers[: ROUNDS + 1] % count, numbers[ROUNDS + 1 :]
    places = rotated(places, drawn[0], count)
    # written out and without divisions: CPUs do not vectorise a loop over rounds that updates the places where they are
    for pair, coin in zip(drawn[1:], coins, strict=True):
        partner = jnp.minimum(pair - places, pair - places + count)
        mixed = (jnp.maximum(places, partner) * jnp.uint32(0x9E3779B1) ^ coin) * jnp.uint32(0x85EBCA77)
        places = places + (mixed >> 16 & 1) * (partner - places)
    return places


def rotated(places: Array, by: Array, count: Array | int) -> Array:
    """The remainder of `places + by`, both less than `count`;
    what is below zero has wrapped around to a large number."""
    return jnp.minimum(places + by, places + by - jnp.uint32(count))
