"""`python -m atelier_cli`: the command `atelier`."""

from atelier_cli.main import main

main()
