"""`python -m kayn` is the command line."""

from kayn.cli import main

main(prog_name="kayn")
