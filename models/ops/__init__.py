"""The operations of the networks; what is there for a processor is in this room only."""
