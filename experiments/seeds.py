"""Random numbers that are a function of what they are for, never of time or place."""

import hashlib

from torch import Generator


def seed_for(*purpose: str | int) -> int:
    """A 63-bit seed for one purpose: a stage, its cell's seed, what for, at which step."""
    digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(*purpose: str | int) -> Generator:
    """A generator on the CPU, seeded for one purpose."""
    return Generator().manual_seed(seed_for(*purpose))
