"""Requests to stop: SIGTERM, which schedulers send before they take a machine away, and Ctrl-C."""

import os
import signal
import threading

from shatter_tf.console import say

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


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
        """Handles the signals from now on; a second one ends the process.

        Call this before libraries start threads: signals are blocked in this thread and those that it starts, so that
        one thread can wait for them. Handlers would not do: TensorFlow, when it talks to other machines, sets its own.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        signal.sigwait(_SIGNALS)
        threading.Thread(target=lambda: os._exit(128 + signal.sigwait(_SIGNALS)), daemon=True).start()
        self._asked.set()
        saved = self.unsaved.acquire(timeout=self.patience)
        with self.saving:
            saved = saved or self.unsaved.acquire(blocking=False)
            if not saved:
                say("stopped on request, in steps that did not end; the same command resumes from the last checkpoint")
            elif not self.announced:
                say("stopped on request, with nothing unsaved; the same command resumes from there")
            os._exit(os.EX_TEMPFAIL)
