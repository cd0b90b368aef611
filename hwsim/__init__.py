"""hwsim: a discrete-event simulator of LLM token generation on devices whose weights do not fit into DRAM."""

__version__ = "0.1.0"
