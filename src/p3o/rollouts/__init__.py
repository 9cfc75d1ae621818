"""Responses written by vLLM servers: HTTP, weights, checks. docs/scale_vllm.md.

``p3o.rollouts.plugin`` and what it registers run inside vLLM and import nothing of p3o but ``group``; everything else is the
learner's side.
"""
