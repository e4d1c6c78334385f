import pytest
import torch

from mm_lightning.memory.documents import Documents


def starts(*rows: str) -> torch.Tensor:
    return torch.tensor([[c == "x" for c in row] for row in rows])


def test_boundaries_of_a_packed_batch():
    documents = Documents.from_starts(starts("x..x.", ".x..x"))
    assert documents.lengths == (3, 2, 1, 3, 1)
    assert documents.position.tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 0]]
    assert documents.offsets.tolist() == [0, 3, 5, 6, 9, 10]
    assert documents.shape == (2, 5)
    assert documents.longest == 3
    assert not documents.single


def test_a_document_never_goes_on_into_the_next_row():
    assert Documents.from_starts(starts("....", "....")).lengths == (4, 4)


def test_tokens_begin_documents_at_bos():
    documents = Documents.from_tokens(torch.tensor([[7, 1, 2, 7, 3]]), bos=7)
    assert documents.lengths == (3, 2)


def test_whole_rows_equal_rows_without_starts():
    whole, found = Documents.whole(3, 4), Documents.from_starts(torch.zeros(3, 4, dtype=torch.bool))
    assert whole.lengths == found.lengths
    assert whole.position.tolist() == found.position.tolist()
    assert whole.offsets.tolist() == found.offsets.tolist()
    assert whole.single
    assert found.single


def test_the_stream_without_the_last_tokens_of_each_document():
    documents = Documents.from_starts(starts("x..x.", ".x..x"))  # 0 1 2 | 3 4 | 5 | 6 7 8 | 9
    index, offsets = documents.without_last(1)
    assert index.tolist() == [0, 1, 3, 6, 7]
    assert offsets.tolist() == [0, 2, 3, 3, 5, 5]
    assert offsets.dtype == torch.int32
    assert documents.without_last(1)[0] is index
    assert documents.without_last(5)[0].numel() == 0


def test_wrong_starts_are_refused():
    with pytest.raises(ValueError, match="bool"):
        Documents.from_starts(torch.zeros(2, 3))
