"""Fixtures that several rooms share; what makes them is in ``tests/lib``."""

from plant import own_plant, plant

__all__ = ["own_plant", "plant"]
