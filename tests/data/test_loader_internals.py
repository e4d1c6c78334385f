"""Each private name of torch's data loader that loader workers touch is where it was."""

import inspect

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

pytestmark = pytest.mark.interfaces


def test_names_of_loader_iterators():
    source = inspect.getsource(_MultiProcessingDataLoaderIter)
    for name in ("_workers", "_shutdown", "_index_queues", "_worker_result_queue", "_worker_pids_set"):
        assert f"self.{name} = " in source or f"self.{name}: " in source, name
    assert "self._pin_memory_thread_done_event = " in source
    assert list(inspect.signature(_MultiProcessingDataLoaderIter._try_get_data).parameters) == ["self", "timeout"]
    assert "_pin_memory" in vars(iter(DataLoader(torch.zeros(2))))
    assert callable(signal_handling._remove_worker_pids)


def test_names_of_loaders():
    loader = DataLoader(torch.zeros(2))
    assert loader._iterator is None
    assert list(inspect.signature(loader._get_iterator).parameters) == []
