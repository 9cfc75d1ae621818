"""What touches transformers: tokenizing, language models, heads, sampling, saving."""
