"""The pump: audio from one socket of a call to the other, in one step that never waits.

The media path has no sockets, and the media plane is Python. Between them, for each of the 50
frames a second and call, stood half a dozen Python calls that only carried bytes from one to the
other. A :class:`Pump` is those calls in C, and nothing else: it reads what is there, lets the path
take audio as far as it goes, writes what came of it, and says what it has left. Whatever is not
plain (a message, a socket that takes no more, an error, Python's TLS) is left to the plane, where
it is handled as if there were no pump. TLS of our own (``tls.py``) is a descriptor like any other.

:class:`Pumps` waits for the sockets of all, and goes on by itself as long as there is only audio.
"""

from codec._pump import READY_PER_PASS, Descriptor, Left, Pump, Pumps

__all__ = ["READY_PER_PASS", "Descriptor", "Left", "Pump", "Pumps"]
