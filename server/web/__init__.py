"""What HTTP clients and the carrier may ask, one file for each kind of visitor."""
