"""What tests of models share."""

from __future__ import annotations

import pytest

from server.simulators.gemini import GeminiSimulator
from tests.support.gemini_talks import KEY


@pytest.fixture
def simulator() -> GeminiSimulator:
    return GeminiSimulator(api_key=KEY)
