"""CSDN: visible-infrared person re-identification, trained in production."""

__version__ = "0.1.0"
