"""Calls to watch: every demonstration script, and the command that plays one."""
