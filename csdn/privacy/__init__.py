"""Forgetting a person: what shows them is removed, wherever it can be reached, and the removal is verified."""
