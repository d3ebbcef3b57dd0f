"""What others are told of calls: events, signed, kept until they are delivered, in order."""
