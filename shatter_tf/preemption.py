"""Being asked to stop: SIGTERM, as schedulers send it before they take a machine away, and Ctrl-C."""

import os
import signal
import threading

from shatter_tf.command_line import say

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """What SIGTERM or Ctrl-C asks for: that training stops soon and loses nothing.

    While steps are unsaved, training itself looks at `asked` after every loop, saves and stops. At all other times
    (libraries are imported, data read, an evaluation runs) there is nothing to lose, and the process is ended at once.
    A thread does that: Python's own handlers run only between its bytecodes, and an evaluation is one. It also ends a
    loop of steps that does not end: data that does not come, another machine that hangs.

    Attributes:
      unsaved: held by training from a step on until a checkpoint has it.
      saving: held by training while a checkpoint is written.
      patience: seconds that a loop of steps may still take.
    """

    def __init__(self):
        self.unsaved, self.saving = threading.Lock(), threading.Lock()
        self.patience = 20.0
        self._asked = threading.Event()
        self._listening = False

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def listen(self) -> None:
        """Heeds the signals from now on; a second one ends the process.

        To be called again when TensorFlow has begun to talk to other machines: it takes SIGTERM for itself then.
        """
        if not self._listening:
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer)
            threading.Thread(target=self._wait, args=(reader,), daemon=True).start()
            self._listening = True
        for number in _SIGNALS:
            signal.signal(number, lambda number, frame: signal.signal(number, signal.SIG_DFL))

    def _wait(self, reader: int) -> None:
        os.read(reader, 1)
        self._asked.set()
        saved = self.unsaved.acquire(timeout=self.patience)
        with self.saving:
            saved = saved or self.unsaved.acquire(blocking=False)
            if saved:
                say("stopped, as asked, with nothing unsaved; the same command goes on from there")
            else:
                say("stopped, as asked, in steps that did not end; the same command goes on from the last checkpoint")
            os._exit(os.EX_TEMPFAIL)
