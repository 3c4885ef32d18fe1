"""Data: where images come from, and what happens to them on the host and on the device."""
