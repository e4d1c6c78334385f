import torch

from mm_lightning.data.batch import Batch


def test_targets_of_a_new_document_are_left_out():
    bos, eos = 8, 9
    row = torch.tensor([[1, 2, 9, 8, 3, 9, 8, 9, 8]])
    batch = Batch.from_sequences(row, bos, eos)
    assert batch.tokens.tolist() == [[1, 2, 9, 8, 3, 9, 8, 9]]
    assert batch.targets.tolist() == [[2, 9, -100, 3, 9, -100, 9, -100]]
    assert batch.documents.lengths == (3, 3, 2)
    assert batch.documents.position.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]]


def test_one_token_at_both_ends_of_documents():
    # [9 1 2 9] [9 3 9] [9 4 9], first seen whole, then from the middle: between two equal tokens, the second begins.
    stream = [9, 1, 2, 9, 9, 3, 9, 9, 4, 9]
    batch = Batch.from_sequences(torch.tensor([stream]), 9, 9)
    assert batch.documents.lengths == (4, 3, 2)
    assert batch.targets.tolist() == [[1, 2, 9, -100, 3, 9, -100, 4, 9]]
    for begin, lengths in {1: (3, 3, 2), 3: (1, 3, 2), 4: (3, 2)}.items():
        assert Batch.from_sequences(torch.tensor([stream[begin:]]), 9, 9).documents.lengths == lengths


def test_rows_are_documents_of_their_own():
    batch = Batch.collate([torch.tensor([1, 2, 3]), torch.tensor([8, 5, 8])], 8, 9)
    assert len(batch) == 2
    assert batch.documents.lengths == (2, 2)
    assert batch.targets.tolist() == [[2, 3], [5, -100]]
    moved = batch.to("cpu")
    assert moved.tokens.equal(batch.tokens)
    assert moved.documents.lengths == batch.documents.lengths
