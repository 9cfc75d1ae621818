"""Rewards that are computed elsewhere and come by HTTP: the client of four interfaces, and a server of our own.

docs/rewards_service.md describes the requests and replies.
"""

from p3o.feedback.remote.config import RewardServiceConfig

__all__ = ["RewardServiceConfig"]
