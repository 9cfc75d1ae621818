"""Benchmarks on problems whose truth is known: distances from the best possible KL–reward frontier."""
