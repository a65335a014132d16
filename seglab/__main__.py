"""The command `seglab` as `python -m seglab`."""

from seglab.cli.main import main

if __name__ == "__main__":
    main()
