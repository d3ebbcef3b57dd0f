"""What is left of a call: its record, its recording, its trace."""
