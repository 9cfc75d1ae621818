"""Responses written by vLLM servers: HTTP, weights, checks. docs/scale_vllm.md.

``plugin``, ``engine`` and ``worker`` run inside vLLM, and import nothing else of p3o but ``group``; all others are the
learner's side.
"""
