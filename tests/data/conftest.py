import pytest
from corpus_samples import make_texts, write_lines

from mm_lightning.data.prepare import prepare
from mm_lightning.data.prepare_config import PrepareConfig


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """200 documents as bytes, a tenth of them for validation. Not to be changed."""
    root = tmp_path_factory.mktemp("prepared")
    source = write_lines(root / "in.jsonl", make_texts(200))
    prepare(PrepareConfig([source], validation_fraction=0.1, workers=1), root / "data", progress=False)
    return root / "data"


@pytest.fixture
def copy(folder, tmp_path):
    """The same, to be changed."""
    import shutil

    return shutil.copytree(folder, tmp_path / "copy")
