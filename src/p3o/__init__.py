"""Pairwise Proximal Policy Optimization (Wu et al., arXiv:2310.00212)."""

__version__ = "0.1.0"
