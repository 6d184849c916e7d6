"""Stages lie within each other and together are the time that was measured."""

import threading
import time

import pytest

from lic.codec.stages import Stages, stage, synchronised


def test_a_stage_within_another_counts_once() -> None:
    stages = Stages()
    start = time.perf_counter()
    with stages.measure("outer"):
        time.sleep(0.02)
        with stage("inner"):
            time.sleep(0.03)
            with stage("innermost"):
                time.sleep(0.01)
    wall = 1000 * (time.perf_counter() - start)
    assert list(stages.milliseconds) == ["outer", "inner", "innermost"]
    for name, least in (("outer", 20), ("inner", 30), ("innermost", 10)):
        assert stages.milliseconds[name] >= 0.99 * least
    assert wall - 1 < sum(stages.milliseconds.values()) <= wall


def test_a_stage_that_fails_is_counted_and_ends() -> None:
    stages = Stages()
    with pytest.raises(KeyError), stages.measure("outer"), stage("inner"):
        raise KeyError
    with stage("nobody measures this"):
        pass
    assert list(stages.milliseconds) == ["outer", "inner"]


def test_threads_measure_on_their_own() -> None:
    stages = Stages()

    def other() -> None:
        with stage("of another picture"):
            pass

    with stages.measure("mine"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert list(stages.milliseconds) == ["mine"]


def test_measurements_add_up() -> None:
    stages = Stages({"a": 1.0})
    stages.add({"a": 2.0, "b": 3.0})
    assert stages.milliseconds == {"a": 3.0, "b": 3.0}


def test_what_a_device_still_does_is_of_the_stage_that_began_it() -> None:
    pending = [0.0]

    def wait() -> None:
        time.sleep(pending[0])
        pending[0] = 0.0

    stages = Stages()
    with synchronised(wait):
        with stages.measure("transform"):
            pending[0] = 0.03
        with stages.measure("copy"):
            pass
    assert stages.milliseconds["transform"] >= 29.9
    assert stages.milliseconds["copy"] < 15
