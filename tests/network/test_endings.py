"""Threads that make networks and let them go: none waits for another that waits for it."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

from singlecard.network import endings
from singlecard.network.net import Net

#: In a process of its own: threads that wait for each other so would stop the tests as well.
THREADS = """
import sys, threading
from singlecard.network.net import Net
sys.setswitchinterval(1e-6)

def work():
    for _ in range(1500):
        Net()

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_make_and_drop_networks_go_on() -> None:
    """A model that goes while an engine is built in the background would stop the process."""
    subprocess.run([sys.executable, "-c", THREADS], check=True, timeout=300)


def test_what_ends_while_a_builder_is_made_waits_for_it() -> None:
    """TensorRT's lock is not one that a thread can take twice."""
    net = Net()
    builder = weakref.ref(net.builder)
    with endings.making():
        del net
        assert builder() is not None
    assert builder() is None


def test_a_network_goes_without_a_collection() -> None:
    """Its constants are as large as the model."""
    gc.collect()
    gc.disable()
    try:
        net = Net()
        builder, logger = weakref.ref(net.builder), weakref.ref(net.logger)
        del net
        assert builder() is None and logger() is None
    finally:
        gc.enable()


def test_what_is_held_to_the_end_of_the_process_says_nothing() -> None:
    """A program's last words were a traceback of ours: its modules were gone before the network."""
    script = """
import os
import sys
from singlecard.network import core
from singlecard.network.net import Net

class Late:
    def __del__(self, core=core, net=Net(), end=os._exit):
        core.end = None  # what Python leaves of a module by then
        try:
            net.__del__()
        except TypeError:
            end(3)

sys.late = Late()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
