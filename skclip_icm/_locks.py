"""Locks that are open in a process forked from this one.

A fork copies the thread that forks and no other. A lock that another thread holds at
that moment would stay locked in the child for ever, so it is made anew there. Every
lock of the package is a `Lock` for this reason.
"""

import os
import threading
import weakref


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


def _renew_all():
    for lock in list(_LOCKS):
        lock.renew()


_LOCKS: weakref.WeakSet = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
