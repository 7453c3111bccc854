"""Real clients against a real server with the model in the box: `make test-clients`.

The clients live in an environment of their own. Where one is not installed, its tests skip.
"""

from collections.abc import Iterator

import pytest

from tests.clients.served import Server, asked, serving

KEY = "the-key"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def guarded() -> Iterator[Server]:
    """One that wants a key."""
    with serving(MVLM_API_KEY=KEY) as running:
        yield running


@pytest.fixture(scope="session")
def answer() -> str:
    """The right answer to QUESTION about PICTURE."""
    return asked()
