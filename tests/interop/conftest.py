"""One workshop for all tests of a run: devices that are nothing but openssl and curl, at a served installation."""

from __future__ import annotations

import pytest
from plant import Plant
from programs import need
from workshop import Workshop


@pytest.fixture(scope="session")
def workshop(plant: Plant, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Devices for everybody; each test makes its own."""
    need("openssl", "curl")
    folder = tmp_path_factory.mktemp("workshop")
    for authority in plant.json("ca", "list"):
        (folder / f"{authority['id']}.pem").write_text(authority["certificate"])
    return Workshop(plant, folder)
