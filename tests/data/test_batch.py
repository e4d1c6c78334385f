import pickle

import numpy as np
import torch

from mm_lightning.data.batch import Batch, Packed
from mm_lightning.memory.documents import Documents


def test_targets_of_a_new_document_are_left_out():
    bos, eos = 8, 9
    row = np.array([[1, 2, 9, 8, 3, 9, 8, 9, 8]])
    batch = Batch.from_sequences(row, bos, eos)
    assert batch.tokens.tolist() == [[1, 2, 9, 8, 3, 9, 8, 9]]
    assert batch.targets.tolist() == [[2, 9, -100, 3, 9, -100, 9, -100]]
    assert batch.documents.lengths == (3, 3, 2)
    assert batch.documents.position.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]]


def test_one_token_at_both_ends_of_documents():
    # [9 1 2 9] [9 3 9] [9 4 9], first seen whole, then from the middle: between two equal tokens, the second begins.
    stream = [9, 1, 2, 9, 9, 3, 9, 9, 4, 9]
    batch = Batch.from_sequences(np.array([stream]), 9, 9)
    assert batch.documents.lengths == (4, 3, 2)
    assert batch.targets.tolist() == [[1, 2, 9, -100, 3, 9, -100, 4, 9]]
    for begin, lengths in {1: (3, 3, 2), 3: (1, 3, 2), 4: (3, 2)}.items():
        assert Batch.from_sequences(np.array([stream[begin:]]), 9, 9).documents.lengths == lengths


def test_rows_are_documents_of_their_own():
    batch = Batch.from_sequences(np.array([[1, 2, 3], [8, 5, 8]], np.uint16), 8, 9)
    assert len(batch) == 2
    assert batch.documents.lengths == (2, 2)
    assert batch.targets.tolist() == [[2, 3], [5, -100]]
    moved = batch.to("cpu")
    assert moved.tokens.equal(batch.tokens)
    assert moved.documents.lengths == batch.documents.lengths


def test_sequences_travel_as_they_are_stored_and_arrive_as_a_batch():
    rows = np.random.RandomState(0).randint(0, 9, (3, 40)).astype(np.uint16)
    sent = pickle.dumps(Packed(rows, 8, 7))
    assert len(sent) < rows.nbytes + 400
    here, there = Batch.from_sequences(rows, 8, 7), pickle.loads(sent)
    assert there.tokens.equal(here.tokens)
    assert there.targets.equal(here.targets)
    starts = there.documents.starts
    assert starts.equal(torch.from_numpy(rows[:, :-1] == 8).index_fill(1, torch.tensor(0), True))
    for batch in (here, there):  # the same as from_starts finds
        found = Documents.from_starts(starts)
        assert batch.documents.lengths == found.lengths
        assert batch.documents.position.equal(found.position)
        assert batch.documents.offsets.equal(found.offsets)
        assert batch.documents.offsets.dtype == found.offsets.dtype
