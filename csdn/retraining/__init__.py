"""Retraining on new camera data: runs, the gate, and Git and DVC as the registry of models."""
