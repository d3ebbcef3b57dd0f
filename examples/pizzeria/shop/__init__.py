"""What a pizzeria's agents know and can do."""
