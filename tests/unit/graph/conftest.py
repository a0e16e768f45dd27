"""The world that the tests of this folder share."""

import pytest

from tests.taste_world import TasteWorld, make_taste_world


@pytest.fixture(scope="session")
def taste_world() -> TasteWorld:
    return make_taste_world()
