"""The registry of the processes of one machine: a private directory that they share."""
