import pytest
from benchmark_documents import people, questions, write


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with ARC and NQ."""
    folder = tmp_path_factory.mktemp("data")
    write(folder / "ai2_arc" / "ARC-Easy", "test", questions(7))
    write(folder / "nq_open", "validation", people(3))
    write(folder / "nq_open", "train", people(12, 100))
    return folder
