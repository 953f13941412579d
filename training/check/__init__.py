"""Checks of credit by enumeration: small worlds in which every trajectory can be listed."""

from treewright.training.check.kit import EstimatorCheck, check_estimator

__all__ = ["EstimatorCheck", "check_estimator"]
