"""One workshop for all tests of a run: devices that are nothing but openssl and curl, at a served installation."""

from __future__ import annotations

from collections.abc import Iterator

import oracles
import pytest
from plant import Plant
from programs import need
from workshop import Workshop, der


@pytest.fixture(scope="session")
def workshop(plant: Plant, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Devices for everybody; each test makes its own. At the end all oracles hold, whatever was asked for and refused."""
    need("openssl", "curl")
    folder = tmp_path_factory.mktemp("workshop")
    for authority in plant.json("ca", "list"):
        (folder / f"{authority['id']}.pem").write_text(authority["certificate"])
    yield Workshop(plant, folder)
    oracles.check(plant, [der(file) for file in folder.glob("*/device.pem")])
