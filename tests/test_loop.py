import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sip.structs import TrainState, Tree, UserError
from sip.training import loop
from sip.training.loop import CheckpointConfig, LogConfig


@pytest.mark.parametrize(
    ("every", "last", "want"),
    [(3, 7, [3, 6, 7]), (1, 3, [1, 2, 3]), (7, 7, [7]), (10, 7, [7]), (0, 7, [7])],
)
def test_something_is_due_every_so_often_and_at_the_end(every, last, want):
    assert [i for i in range(1, last + 1) if loop.due(i, every, last)] == want


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_flag_and_handlers_come_back(name):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(loop.Stopped), loop.stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), name)
        assert stop
        os.kill(os.getpid(), signal.SIGTERM)  # again changes nothing
        assert stop
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    with loop.stop_on_signals() as stop:
        assert not stop


def test_a_signal_after_the_last_look_at_the_flag_stops_too():
    with pytest.raises(loop.Stopped, match="stopped between two checkpoints"):
        with loop.stop_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_ctrl_c_interrupts_and_handlers_come_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), loop.stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_there_are_no_handlers_and_no_errors():
    seen = []

    def work():
        with loop.stop_on_signals() as stop:
            seen.append((bool(stop), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGTERM))]


def state(skipped_in_row):
    zero = jnp.int32(0)
    return TrainState(zero, {}, {}, None, jnp.int32(skipped_in_row), zero)


def test_too_many_bad_updates_in_a_row_end_the_run():
    config = CheckpointConfig(max_skipped_in_row=3)
    loop.check(state(2), {}, {}, config, steps=9, saved=4)
    with pytest.raises(UserError, match="not finite in 3 updates .*max_skipped_in_row.*, 4, is"):
        loop.check(state(3), {}, {}, config, steps=9, saved=4)
    with pytest.raises(UserError, match="not finite in 2 updates .*there is no checkpoint"):
        loop.check(state(2), {}, {}, config, steps=2, saved=None)


def test_processes_have_to_agree_on_the_batch_and_on_every_figure(monkeypatch):
    seen = []
    agreed = lambda at, tree: seen.append([np.asarray(x).tobytes() for x in jax.tree.leaves(tree)])
    monkeypatch.setattr(loop.processes, "agree", agreed)
    for batch, loss in (([0], 1.0), ([0], 1.0), ([1], 1.0), ([0], 1.0000001), ([0], np.nan)):
        loop.check(state(0), np.array(batch), {"b": 2.0, "a": loss}, CheckpointConfig(), 9, None)
    assert seen[0] == seen[1] and all(other != seen[0] for other in seen[2:])


def test_ratios_are_of_sums_and_leave_out_what_counted_nothing():
    pair = lambda total, denom: (jnp.float32(total), jnp.float32(denom))
    steps = [
        {"loss": pair(6, 2), "dropped": pair(1, 1), "none": pair(0, 0)},
        {"loss": (1.0, 2.0), "none": (np.float32(0), 0)},
    ]
    assert loop.totals(steps) == {"loss": (7.0, 4.0), "dropped": (1.0, 1.0), "none": (0.0, 0.0)}
    assert loop.ratios(steps) == {"loss": 1.75, "dropped": 1.0}
    assert loop.ratios([]) == {}
    half = loop.totals(steps[:1])
    assert loop.ratios([half, steps[1]]) == loop.ratios(steps), "sums may be taken in parts"


def test_averages_of_unequal_parts_are_those_of_the_whole():
    """6/3 and 10/1 average to 16/4, not to the mean of 2 and 10."""
    parts = [{"ce": (6.0, 3), "a": (1.0, 1)}, {"ce": (np.float32(10), np.int32(1))}]
    summed = loop.totals(parts)
    assert loop.ratios(parts) == loop.ratios([summed]) == {"ce": 4.0, "a": 1.0}
    assert loop.totals([summed, {}]) == summed == loop.totals([{}, summed])


def test_saving_finishes_what_is_pending_even_when_the_loop_fails(tmp_path):
    with (
        pytest.raises(RuntimeError, match="loop"),
        loop.saving(str(tmp_path), CheckpointConfig(keep=1)) as manager,
    ):
        params = {"w": jnp.arange(3.0)}
        zero = lambda: jnp.zeros((), jnp.int32)
        loop.checkpoints.save(
            manager, TrainState(zero(), params, {}, None, zero(), zero()), {"a": 1}
        )
        raise RuntimeError("the loop failed")
    assert loop.checkpoints.record(str(tmp_path)) == {"a": 1}


def test_the_meter_counts_tokens_of_trunks_and_branches(monkeypatch):
    now = iter([10.0, 10.5, 11.0, 11.0, 11.25, 12.0, 16.0])
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(now))
    masks = np.array([[True, True, False]]), np.array([[[True, False], [True, True]]])
    tree = Tree(masks[0] * 1, masks[0], masks[1] * 1, masks[1], np.ones((1, 2)))
    meter = loop.Meter()
    meter.count({"a": tree, "b": (tree, np.ones((9, 9), bool))})
    for _ in range(2):
        with meter.phase("judge"):
            pass
    shares = {"speed/share/judge": 0.75 / 2}
    assert meter.read() == {"speed/tokens_per_sec": 10 / 2, "speed/seconds": 2.0, **shares}
    assert meter.read() == {"speed/tokens_per_sec": 0.0, "speed/seconds": 4.0}


def test_the_profiler_traces_the_steps_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda d: calls.append((len(seen), d)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append((len(seen), "stop")))
    profiler, off, seen = loop.Profiler("there", wait=2, steps=3), loop.Profiler(""), []
    for _ in range(8):
        seen.append("step")
        profiler.step(state(0))
        off.step(state(0))
    profiler.close()
    assert calls == [(2, "there"), (5, "stop")]
    short = loop.Profiler("there", wait=8, steps=3)
    for _ in range(8):
        short.step(state(0))
    short.close()
    assert calls[2:] == [(8, "there"), (8, "stop")], "a run may end within the trace"


@pytest.mark.parametrize("field", ["every_steps", "keep", "max_skipped_in_row"])
def test_a_checkpoint_config_that_cannot_be_names_its_field(field):
    with pytest.raises(UserError, match=f"checkpoint.*{field}"):
        CheckpointConfig(**{field: 0})
    with pytest.raises(UserError, match=r"log\.every_steps"):
        LogConfig(every_steps=0)


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_outside_the_loops_is_a_stop_also_as_an_error_of_a_library(name):
    before = signal.getsignal(name)
    with pytest.raises(loop.Stopped), loop.stopping():
        signal.raise_signal(name)
    with pytest.raises(loop.Stopped), loop.stopping():
        try:
            signal.raise_signal(name)
        except KeyboardInterrupt:
            raise UserError("cannot read the corpus: KeyboardInterrupt") from None
    with pytest.raises(loop.Stopped, match="after step 3"), loop.stopping():
        raise loop.Stopped("stopped after step 3")
    with pytest.raises(UserError, match="bad"), loop.stopping():
        raise UserError("bad")
    assert signal.getsignal(name) is before
