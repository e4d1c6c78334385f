import gc
import signal

import pytest
from forks import fork_server
from hypothesis import HealthCheck, settings
from tiny_run import finished, finished_once, prepared, tiny  # noqa: F401

gc.disable()  # until the tests begin: what they import stays

# The same examples every time, and none is too slow: how fast a machine is, is not what tests are about.
settings.register_profile("plain", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("plain")


def pytest_addoption(parser):
    parser.addoption("--soak_minutes", type=float, default=30.0, help="how long -m soak kills a run again and again")
    parser.addoption("--soak_seed", type=int, default=1, help="of the order and the moments of what -m soak does")
    parser.addoption("--soak_log", default=None, help="a file to which -m soak adds its summary")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session):
    """The server of forks (forks.py) is forked when all is imported and nothing computed."""
    gc.freeze()
    gc.enable()
    if session.config.pluginmanager.hasplugin("dsession"):  # the process that hands out the tests
        return (yield)
    with fork_server():
        return (yield)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tensors of these tests are small: more threads only wait for each other."""
    import torch  # here, for the process that hands out the tests needs none of it

    torch.set_num_threads(1)


# A shell that starts a command in the background has it ignore ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
