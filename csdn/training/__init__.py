"""The two stages of training: prompts.py, then embedding.py."""
