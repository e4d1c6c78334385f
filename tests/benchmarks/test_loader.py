"""The benchmark of the loader compares with reads of the same sequences."""

import loader as script
import pytest

from mm_lightning.training.parse_fit import parse_fit


def test_plain_reading_reads_what_the_loader_reads(tiny):
    data = parse_fit(["--config", str(tiny)]).data
    mapped, batches = script.MappedReader(data, 0), iter(script.data_module(data, 0, 0).train_dataloader())
    for _ in range(3):
        assert mapped.read(data.micro_batch_size)[:, :-1].tolist() == next(batches).tokens.tolist()


@pytest.mark.slow
def test_the_table(tiny, capsys):
    script.main(["--config", str(tiny), "--batches", "2", "--repeats", "1"])
    assert "by plain reading" in capsys.readouterr().out
