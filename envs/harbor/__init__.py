"""Harbor task folders as worlds: their containers, their instruction, their tests."""

from treewright.envs.harbor.suite import Checked, check_tasks, harbor_suite

__all__ = ["Checked", "check_tasks", "harbor_suite"]
