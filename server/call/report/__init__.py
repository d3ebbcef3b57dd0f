"""What is written down of a call while it lasts, and the record that is made of it."""
