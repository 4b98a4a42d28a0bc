"""Settings of the whole process that are another while some code runs, on whatever threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from lptensor import _compat


class ProcessWide:
    """A context with another setting: who comes in makes the change, the last out takes back that of the first.

    Were each to put back what it has found, the second of two threads would find, and leave behind, what the first
    has set.

    Args:
        change: makes the change if it is still to be made, and returns what ``restore`` needs to take it back.
        restore: takes it back.
    """

    def __init__(self, change: Callable[[], Any], restore: Callable[[Any], object]) -> None:
        self._change, self._restore = change, restore
        self._lock = threading.Lock()
        self._inside = 0
        self._before: Any = None

    def __enter__(self) -> None:
        counted = False
        try:
            with self._lock:
                before = self._change()  # each time: somebody may have changed the setting since the first came in
                if self._inside == 0:
                    self._before = before
                self._inside += 1
                counted = True
        except BaseException:  # Ctrl-C: nobody will leave
            if counted:
                self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._restore(self._before)


def _without(switch: tuple[Callable[[], bool], Callable[[bool], object]]) -> ProcessWide:
    is_on, turn = switch

    def turn_off() -> bool:
        before = is_on()
        turn(False)
        return before

    return ProcessWide(turn_off, turn)


# They run a whole recurrent layer as one op: oneDNN an LSTM on the CPU, cuDNN every one on a GPU.
without_onednn, without_cudnn = _without(_compat.onednn), _without(_compat.cudnn)
