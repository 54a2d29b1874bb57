"""Fresh weights of a small model, as a stage's checkpoint and as a Hugging Face folder with a tokenizer."""

import pytest

from tests.evaluation.test_from_checkpoint import written
from tests.helpers import run_distributed


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    run_distributed(written, 1, folder)
    return folder
