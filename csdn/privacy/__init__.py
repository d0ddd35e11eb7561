"""Forgetting a person: images, rows and names are removed where they can be reached; a search verifies it."""
