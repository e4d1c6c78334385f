"""A folder that an earlier version wrote, with litdata 0.2.76: its tokens are read by today's versions."""

from pathlib import Path

import pytest
from litdata import StreamingDataset, TokensLoader

from mm_lightning.data.datamodule import TextDataModule
from mm_lightning.data.verify import verify

FOLDER = Path(__file__).parent / "golden"
BEGIN, END = 256, 257
TEXTS = {
    "train": ["Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich."],
    "validation": [
        "A memory keeps pairs of keys and values.",
        "It answers a key with the mean of the values, weighted by how near their keys are.",
    ],
}
TOKENS = {split: [token for text in texts for token in (BEGIN, *text.encode(), END)] for split, texts in TEXTS.items()}


@pytest.mark.interfaces
@pytest.mark.parametrize("split", TEXTS)
def test_litdata_reads_it(split):
    stream = StreamingDataset(str(FOLDER / split), item_loader=TokensLoader(block_size=7))
    whole = len(TOKENS[split]) // 7 * 7
    assert [int(token) for block in stream for token in block] == TOKENS[split][:whole]


def test_the_data_module_reads_it():
    data = TextDataModule(str(FOLDER), context_length=20, global_batch_size=1, micro_batch_size=1, num_workers=0)
    data.prepare_data()
    data.setup("fit")
    for loader, split in ((data.train_dataloader(), "train"), (data.val_dataloader(), "validation")):
        sequences = sorted(batch.tokens[0].tolist() for batch in loader)
        expected = [TOKENS[split][at : at + 20] for at in range(0, len(TOKENS[split]) - 20, 21)]
        assert sequences == sorted(expected)


def test_it_is_whole():
    assert verify(FOLDER) == []
