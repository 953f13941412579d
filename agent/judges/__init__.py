"""Who judges: evaluators that score actions and answers during a search; none of them sees the truth reward."""
