"""ironroot: certificate trust for the industrial internet."""

__version__ = "0.1.0"
