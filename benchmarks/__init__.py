"""The benchmark suite: each module answers the one question written at its top.

``python -m benchmarks`` lists them and ``python -m benchmarks NAME`` runs one. A benchmark is a
module ``benchmarks/NAME.py`` with a function ``run(options: Options) -> dict``: it prints its
tables to ``options.console``, writes plots into ``options.plots`` if that is set, and returns its
raw figures, to which the machine is added before they are written as JSON. It may have a function
``add_arguments(parser)`` for options of its own, which it finds in ``options.arguments``.
"""
