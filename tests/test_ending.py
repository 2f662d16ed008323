"""How programs end: what is said, where, with which exit code."""

import signal
import subprocess
import sys

import pytest

from gen_jax import ending


class OutOfMemory(RuntimeError):
    """As XLA's."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("nfe must be at least 1, got 0."), "nfe must be at least 1, got 0."),
        (PermissionError(13, "not yours", "/run"), "[Errno 13] not yours: '/run'"),
        (OverflowError("too large"), "too large"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (MemoryError("unable to allocate 5 TiB"), "unable to allocate 5 TiB"),
        (OutOfMemory("RESOURCE_EXHAUSTED: Out of memory"), "RESOURCE_EXHAUSTED: Out of memory"),
    ],
)
def test_what_is_wrong_with_the_input_is_said_in_a_sentence(error, said, capsys):
    with pytest.raises(SystemExit) as ended, ending.said("it", hint=" (see)"):
        raise error
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"it: {said} (see)\n")
    with pytest.raises(type(error)), ending.said("it", debug=True):
        raise error


def test_an_error_of_ours_is_no_fault_of_the_input():
    with pytest.raises(KeyError), ending.said("it"):
        raise KeyError("name")


def test_ctrl_c_ends_with_its_exit_code_and_no_words(capsys):
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with pytest.raises(SystemExit) as ended, ending.said("it"):
        signal.raise_signal(signal.SIGINT)
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "")
    assert signal.set_wakeup_fd(before) == before  # as it was


def test_ctrl_c_while_the_command_is_imported_ends_it_without_a_traceback(tmp_path):
    (tmp_path / "tyro.py").write_text("raise KeyboardInterrupt")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from gen_jax.cli import main; main(['doctor'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


def test_ctrl_c_twice_ends_at_once_also_inside_of_a_long_call():
    """`Event.wait` of a C call does not return for a handler; the first signal is held back, as `fit` does."""
    code = (
        "import ctypes, signal; from gen_jax import ending\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        "with ending.said('it'):\n"
        "    print('ready', flush=True)\n"
        "    while True: ctypes.CDLL(None).usleep(900_000_000)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stderr.read() == "interrupted twice: ended at once\n"
