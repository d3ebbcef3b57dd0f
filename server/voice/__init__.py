"""Whether what a caller's line carries is a voice: asked of a model, where a detector suspects it.

``verdicts`` decides, from probabilities and times; ``silero`` has the model; ``judge`` asks it for
all calls of the process, and lets a call do without where it cannot keep up.
"""
