"""Chains of arithmetic operations modulo p (the objects outside boxes of p), and the split that a chain belongs to."""

import hashlib
import itertools
import math
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Operation = Literal["+", "-", "*"]
Group = Literal["train", "validation", "test"]

VALIDATION_SHARE = 0.05
TEST_SHARE = 0.05
_RANKED_UP_TO = 2048


@dataclass(frozen=True, slots=True)
class Chain:
    """A start and the (operation, operand) pairs that follow it."""

    start: int
    steps: tuple[tuple[Operation, int], ...]

    def values(self, modulus: int) -> list[int]:
        """Return the number of objects outside the boxes after every step, each in 0 .. modulus-1."""
        value, seen = self.start, []
        for operation, operand in self.steps:
            value = {"+": value + operand, "-": value - operand, "*": value * operand}[operation] % modulus
            seen.append(value)
        return seen


@lru_cache
def operands(modulus: int) -> dict[Operation, tuple[int, ...]]:
    """Return for each operation its operands in 0 .. modulus-1, without the identity. Factors are coprime to the modulus (invertible)."""
    shifts = tuple(range(1, modulus))
    factors = tuple(n for n in range(2, modulus) if math.gcd(n, modulus) == 1)
    choices: dict[Operation, tuple[int, ...]] = {"+": shifts, "-": shifts, "*": factors}
    return {operation: several for operation, several in choices.items() if several}


def group_of(chain: Chain, modulus: int) -> Group:
    """Return the group of a chain with operands in 0 .. modulus-1; it depends only on a hash of the chain and the modulus.

    About a tenth is held out. If there are at most 2,048 chains of this length, they are divided by the rank of their hash, so that
    no group is empty.
    """
    moves = sum(map(len, operands(modulus).values()))
    if modulus * moves ** len(chain.steps) <= _RANKED_UP_TO:
        return _ranked_groups(modulus, len(chain.steps))[chain]
    share = _hash(chain, modulus) / 2**64
    return "validation" if share < VALIDATION_SHARE else "test" if share < VALIDATION_SHARE + TEST_SHARE else "train"


def sample_chain(rng: random.Random, length: int, group: Group, modulus: int) -> Chain:
    """Draw a chain of a group with operands in 0 .. modulus-1: first the operations, then the operands, each uniformly."""
    choices = operands(modulus)
    kinds = tuple(choices)
    while True:
        start = rng.randrange(modulus)
        operations = rng.choices(kinds, k=length)
        chain = Chain(start, tuple((operation, rng.choice(choices[operation])) for operation in operations))
        if group_of(chain, modulus) == group:
            return chain


def enlarge_operands(chain: Chain, rate: float, modulus: int, rng: random.Random) -> Chain:
    """Add one or two times the modulus to each number of a chain with probability `rate`: same values, larger numbers (p .. 3p-1)."""
    numbers = [chain.start, *(operand for _, operand in chain.steps)]
    lifted = [number + modulus * rng.randint(1, 2) if rng.random() < rate else number for number in numbers]
    return Chain(lifted[0], tuple((operation, operand) for (operation, _), operand in zip(chain.steps, lifted[1:], strict=True)))


@lru_cache
def _ranked_groups(modulus: int, length: int) -> dict[Chain, Group]:
    moves = [(operation, operand) for operation, several in operands(modulus).items() for operand in several]
    chains = [Chain(start, steps) for start in range(modulus) for steps in itertools.product(moves, repeat=length)]
    chains.sort(key=lambda chain: _hash(chain, modulus))
    validation = max(1, round(VALIDATION_SHARE * len(chains)))
    test = max(1, round(TEST_SHARE * len(chains)))
    return {
        chain: "validation" if rank < validation else "test" if rank < validation + test else "train" for rank, chain in enumerate(chains)
    }


def _hash(chain: Chain, modulus: int) -> int:
    text = f"{modulus}:{chain.start}" + "".join(f"{operation}{operand}" for operation, operand in chain.steps)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
