"""The beat of an event loop: it says cheaply that it lives, and a thread sees when it is late.

The loop says when it begins to wait, for how long at most, when that is over, and when a step of a
task has ended. From each of these follows when it owes the next: at once where it works, at the end
of its wait where it sleeps. One that comes :data:`LATE_S` later is late, and the loop itself counts
it exactly, with what its thread has run meanwhile by its CPU clock, and what garbage was collected.

The thread waits in C and without the interpreter's lock, so the loop has nothing of it. While the
loop works it looks every 5 ms (once more after the last step), while the loop sleeps not at all:
the next pass rings its bell. It adds what the loop cannot know of itself, how long it was ready and
had no core, and how late this thread was itself, and it says which step is late while that goes on,
for whoever looks at its stack.
"""

from codec._beat import AVAILABLE, LATE_S, Beat

__all__ = ["AVAILABLE", "LATE_S", "Beat"]
