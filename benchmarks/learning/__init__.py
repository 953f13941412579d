"""The learning experiment: arms of growth schedule and estimator, compared at equal sampled policy tokens.

A knowledge graph small enough that a run takes half a minute of one core; docs/learning.md says what is compared.
"""
