"""Which weights may change: scores, the exact top-k, masks and scopes. Scores and masks serve any module."""
