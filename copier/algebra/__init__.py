"""Low-rank tensor maths: pure functions, no I/O, no choice of device."""
