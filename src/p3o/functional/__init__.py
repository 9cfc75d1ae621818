"""The equations: pure functions on tensors. No I/O, no configuration, no logging."""
