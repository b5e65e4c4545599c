import pytest
import torch

# The tests' tensors are small: a second thread costs more in waiting than it saves in computing.
torch.set_num_threads(1)


@pytest.fixture
def _default_dtype_restored():
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)
