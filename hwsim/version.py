"""The version of hwsim."""

__version__ = "0.2.0"
