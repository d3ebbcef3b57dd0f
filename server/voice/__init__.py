"""Whether what a caller's line carries is a voice: asked of a model, where a detector suspects it.

``verdicts`` decides, from probabilities and times; ``told`` says what a model is to be told of the
caller's turns. ``silero`` has the model of voices; ``judge`` asks it for all calls of the process,
and lets a call do without where it cannot keep up.
"""
