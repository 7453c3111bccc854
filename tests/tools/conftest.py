import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread_for_torch() -> None:
    """On models this small, torch's threads spend their time waiting for each other."""
    torch.set_num_threads(1)
