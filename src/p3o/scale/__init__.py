"""Engines of others that a training runs on: where processes come from, and who samples."""
