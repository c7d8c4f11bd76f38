"""`python -m opmix` is `opmix`."""

from opmix.cli.main import main

if __name__ == "__main__":
    main()
