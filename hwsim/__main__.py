"""``python -m hwsim``: the command line, of the interpreter that one names."""

from hwsim.cli import main

if __name__ == "__main__":
    main()
