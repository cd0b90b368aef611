"""The command line, run in this process."""

from typer.testing import CliRunner

from hwsim.cli.app import app


def run_cli(*arguments, code=0):
    """Run ``hwsim ...``; it must end with the given code."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return done
