"""Sound from socket to socket: the plane of wires, and the relay between two of them."""
