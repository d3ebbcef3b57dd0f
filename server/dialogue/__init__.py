"""What a call decides: pure functions and objects that are told the time. Nothing here waits."""
