"""The command line, ``offhook`` or ``python -m server``: what can be asked for, and a file each."""
