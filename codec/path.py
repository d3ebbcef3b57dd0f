"""The media path: what happens to a chunk between the phone's socket and the model's, in C.

One :class:`MediaPath` belongs to one call. It has no sockets and no clock: bytes go in as they were
read and come out as they are to be written, and Python sees a message only when it is not audio::

      phone's socket                                                        model's socket
           |                                                                      ^
           v                                                                      |
    phone.receive                                                         model.take_output
           |                                                                      ^
     frame, unmask --> JSON --> base64 --> ear --> 16 kHz pcm --> base64, JSON, mask, frame
           |           |                    |
           |           |                    '--> may not pass: take_caller() gives it to Python
           |           '--> not audio: next_from_phone() gives it to Python
           |
     pings, close: answered
           |           .--> not audio, or not followed: next_from_model() gives it to Python
           |           |
     frame, JSON <-- base64 <-- mu-law <-- base64 <-- JSON <-- frame
           |                                                                      ^
           v                                                                      |
    phone.take_output                                                      model.receive
           |                                                                      ^
           v                                                                      |
      phone's socket                                                        model's socket

Messages come out in order with the audio around them: when :meth:`MediaPath.next_from_phone`
returns one, all audio before it has been taken and none after it.

What a message with audio looks like is the carrier's and the model's business: they hand its shape
over (``shapes.py``) when they join. A message that is unusual in any way (an escape in a string, a
key twice, audio together with a transcript) is not understood here on purpose, and comes out whole
for their parsers; tests hold both to the same output. Where a carrier's audio is binary frames,
JSON and base64 are left out on its side. Inside, audio is mu-law: A-law is changed at the carrier's
edge, code by code.

Binary frames have no timestamps: they follow each other, until one comes 0.2 s later than the one
before it. That one comes out, for Python to say how long the pause was (:meth:`MediaPath.resume`).

One pass over what has been read from the phone, and the same the other way::

    path.phone.receive(data)
    while (message := path.next_from_phone()) is not None:
        ...
    model_socket.send(path.model.take_output())
    phone_socket.send(path.phone.take_output())  # a pong, a close
"""

from codec._path import MediaPath
from codec._websocket import WebSocket

__all__ = ["MediaPath", "WebSocket"]
