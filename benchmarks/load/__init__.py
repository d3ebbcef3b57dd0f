"""The load generator: a telephone company and a model in one process, on one clock.

    phone (Twilio's end)  --media-->  server under test  --realtimeInput-->  model (Gemini's end)
           ^------------------ media, clear ----+----- modelTurn, interrupted ------'

It is started as ``python -m benchmarks.load`` by ``benchmarks.point``, in a process and on a core
of its own. ``trail`` numbers audio and recognises it again, ``sockets`` carries messages, ``wheel``
keeps time, ``call`` is one call with both its ends, ``doubles`` is what the server connects to.
"""
