"""Locks that are open in a process forked from this one.

A fork copies the thread that forks and no other. A lock that another thread holds at
that moment would stay locked in the child for ever, so it is made anew there. Every
lock of the package is a `Lock` for this reason.
"""

import errno
import os
import sys
import threading
import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager


class Lock:
    """A lock for ``with``; the thread that holds it may enter once more."""

    def __init__(self):
        self._inside = threading.RLock()
        _LOCKS.add(self)

    # `with` asks for both before it enters, and gets methods of the lock inside: so it
    # leaves the one that it has entered, and no Ctrl-C comes in between.

    @property
    def __enter__(self):
        return self._inside.__enter__

    @property
    def __exit__(self):
        return self._inside.__exit__

    def renew(self):
        """Make it anew if a thread holds it that is not in this process."""
        if self._inside.acquire(blocking=False):  # free, or held by this thread
            self._inside.release()
        else:
            self._inside = threading.RLock()


class Flag:
    """A setting that another library has once for all threads.

    The first thread that comes in keeps what it is, and the last one restores it.

    Parameters
    ----------
    read, write : callable
        ``read()`` returns the setting, ``write(value)`` changes it.
    wanted : callable
        ``wanted(value)`` returns what it shall be inside. If it is that already, it is
        left alone.
    """

    def __init__(self, read, write, wanted):
        self._read, self._write, self._wanted = read, write, wanted
        self._lock, self._inside, self._outside = Lock(), Counter(), None
        _FLAGS.add(self)

    @contextmanager
    def held(self):
        """Let the setting be what is wanted, in a ``with`` block."""
        thread = threading.get_ident()
        with self._lock:
            first = not self._inside
            if first:
                self._outside = self._read()
            self._inside[thread] += 1  # before the change, which a fork then undoes
            if first:
                self._change(to=self._wanted(self._outside))
        try:
            yield
        finally:
            with self._lock:
                if self._inside.total() == 1:
                    self._change(to=self._outside)
                self._leave(thread, 1)

    def renew(self):
        """Let those threads leave that are not in this process."""
        for thread, n in list(self._inside.items()):
            if thread != threading.get_ident():
                self._leave(thread, n)
                if not self._inside:
                    self._change(to=self._outside)

    def _leave(self, thread, n):
        self._inside[thread] -= n
        if not self._inside[thread]:
            del self._inside[thread]

    def _change(self, to):
        if self._wanted(self._outside) != self._outside:
            self._write(to)


@contextmanager
def locked_file(path, message):
    """Hold a file locked; BlockingIOError with `message` while anybody else does.

    The system frees it when the process ends, however it ends. The file stays: removing
    it would let in one who has opened it before and one who makes it anew. Nothing is
    locked where nothing can be written, or where the file system knows no locks.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "ab"))
        except OSError:
            yield
            return
        try:
            _lock_file(file.fileno())
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise BlockingIOError(errno.EAGAIN, message) from error
        yield


def _lock_file(descriptor):
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _renew_all():
    for one in [*_LOCKS, *_FLAGS]:
        one.renew()


_LOCKS: weakref.WeakSet = weakref.WeakSet()
_FLAGS: weakref.WeakSet = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
