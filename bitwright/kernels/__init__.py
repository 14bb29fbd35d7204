"""The loops that machines care about. `dispatch` is the only door; `reference` is the definition."""
