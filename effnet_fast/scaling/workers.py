"""A function on many arguments in worker processes that may die without taking the rest along."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch


class Outcome(NamedTuple):
    """What became of argument ``number``: a ``value``, or None and an ``error``; and how long."""

    number: int
    value: float | None
    error: str | None
    seconds: float


def run_all(
    function: Callable[[Any], float], arguments: Sequence[Any], workers: int
) -> Iterator[Outcome]:
    """``function`` of every argument, ``workers`` at a time, as they finish.

    An exception or a process's death is that argument's ``error``; the next argument gets a new
    process. Leaving the iterator early ends the processes. TypeError where ``function`` cannot be
    sent to another process.
    """
    try:
        pickle.dumps(function)
    except Exception as error:  # pickle raises many types
        raise TypeError(
            f"{function!r} cannot be sent to a worker process ({error}): use a function that a "
            "module defines at its top level"
        ) from error
    waiting = deque(enumerate(arguments))
    count = min(workers, len(arguments))
    threads = max(1, len(os.sched_getaffinity(0)) // max(1, count))
    crew = [_Worker(function, threads) for _ in range(count)]
    try:
        while waiting or any(w.busy for w in crew):
            for w in crew:
                if waiting and not w.busy:
                    w.submit(*waiting.popleft())
            wait([end for w in crew if w.busy for end in (w.pipe, w.process.sentinel)])
            for w in crew:
                if w.busy and w.has_news():
                    yield w.collect()
    finally:
        for w in crew:
            w.stop()


class _Worker:
    """A process, and what it is busy with."""

    def __init__(self, function: Callable[[Any], float], threads: int) -> None:
        self._function, self._threads = function, threads
        self._number, self._begun, self.busy = -1, 0.0, False
        self._start()

    def _start(self) -> None:
        # Not forked: a child would inherit torch's threads' locks. Not daemonic: an evaluation may
        # have processes of its own, a data loader's.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self._threads))
        self.process.start()
        theirs.close()
        self._send(self._function)

    def _send(self, message: Any) -> None:
        with suppress(BrokenPipeError):  # the process died: collect() will say so
            self.pipe.send(message)

    def submit(self, number: int, argument: Any) -> None:
        """Begin argument ``number``; in a new process if the last one died."""
        if not self.process.is_alive():
            self.stop()
            self._start()
        self._number, self._begun, self.busy = number, time.monotonic(), True
        self._send(argument)

    def has_news(self) -> bool:
        """Whether there is an answer, or never will be."""
        return self.pipe.poll() or not self.process.is_alive()

    def collect(self) -> Outcome:
        """What became of the argument, when there is news."""
        self.busy = False
        value: float | None
        error: str | None
        value = error = None
        try:
            if not self.pipe.poll():  # dead, and a process of its own keeps the pipe open
                raise EOFError
            value, error = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            error = f"the process of this evaluation ended with status {self.process.exitcode}"
        return Outcome(self._number, value, error, time.monotonic() - self._begun)

    def stop(self) -> None:
        """End the process, busy or not."""
        self.pipe.close()
        if self.busy:
            self.process.terminate()
        self.process.join()


def _serve(pipe: Connection, threads: int) -> None:
    """A worker process: a function, then arguments until the pipe closes."""
    torch.set_num_threads(threads)
    try:
        function = pipe.recv()
        while True:
            argument = pipe.recv()
            try:
                pipe.send((float(function(argument)), None))
            except Exception:
                pipe.send((None, traceback.format_exc()))
    except EOFError:
        return
