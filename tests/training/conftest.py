import pytest

from dmlfast.training import RunFolder, train

from .helpers import tiny_config


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of the tiny settings that was never disturbed. Not to be written to."""
    return train(tiny_config(), tmp_path_factory.mktemp("finished") / "run")
