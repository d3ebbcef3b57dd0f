"""Asterisk, a PBX of one's own: ``chan_websocket`` for audio, ARI for everything else."""
