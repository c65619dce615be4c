"""Requests to stop: SIGTERM, which schedulers send before they take a machine away, and Ctrl-C."""

import os
import signal
import threading
import time

from shatter_tf.console import say

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Signals that come sooner after the first are the same request: `timeout`, say, signals a process and then its group.
_SAME_REQUEST_SECONDS = 2.0


class StopRequest:
    """A request by SIGTERM or Ctrl-C that training stop soon and lose nothing.

    While steps are unsaved, training itself checks `asked` after every loop, saves and stops. At all other times
    (importing libraries, reading data, evaluating) there is nothing to lose, and the process is ended at once. A thread
    does that: Python's own handlers run only between bytecodes, and an evaluation is one. The thread also ends a loop
    of steps that does not finish, because data does not come or another machine hangs.

    Attributes:
      unsaved: held by training from a step until a checkpoint contains it.
      saving: held by training while a checkpoint is written.
      patience: seconds that a loop of steps may still take.
      announced: set by training once it has said that it stops, so that this is said only once.
    """

    def __init__(self):
        self.unsaved, self.saving = threading.Lock(), threading.Lock()
        self.patience = 20.0
        self.announced = False
        self._asked = threading.Event()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def listen(self) -> None:
        """Handles the signals from now on; another one, seconds after the first, ends the process.

        Call this before libraries start threads: signals are blocked in this thread and those that it starts, so that
        one thread can wait for them. Handlers would not do: TensorFlow, when it talks to other machines, sets its own.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        signal.sigwait(_SIGNALS)
        threading.Thread(target=self._wait_for_another, args=(time.monotonic(),), daemon=True).start()
        self._asked.set()
        saved = self.unsaved.acquire(timeout=self.patience)
        with self.saving:
            saved = saved or self.unsaved.acquire(blocking=False)
            if not saved:
                say("stopped on request, in steps that did not end; the same command resumes from the last checkpoint")
            elif not self.announced:
                say("stopped on request, with nothing unsaved; the same command resumes from there")
            os._exit(os.EX_TEMPFAIL)

    def _wait_for_another(self, first: float) -> None:
        number = signal.sigwait(_SIGNALS)
        while time.monotonic() - first < _SAME_REQUEST_SECONDS:
            number = signal.sigwait(_SIGNALS)

        line = (
            "ended by another signal: the steps since the last checkpoint are lost; the same command resumes from there"
        )
        # Not in this thread, which must end the process even if what reads the output does not go on.
        saying = threading.Thread(target=say, args=(line,), daemon=True)
        saying.start()
        saying.join(timeout=1.0)
        os._exit(128 + number)
