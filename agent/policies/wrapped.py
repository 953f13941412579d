"""A policy around a policy: what it does not change is the inner one's."""

from __future__ import annotations

from treewright.agent.policies.policy import Policy, PolicyStats

__all__ = ["Wrapped"]


class Wrapped:
    """A policy around a policy."""

    def __init__(self, policy: Policy) -> None:
        self.inner = policy
        self.name: str = policy.name
        self.stats: PolicyStats = policy.stats

    @property
    def version(self) -> str:
        return self.inner.version

    async def close(self) -> None:
        await self.inner.close()
