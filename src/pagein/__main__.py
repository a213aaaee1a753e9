"""``python -m pagein``."""

from pagein.cli.main import main

if __name__ == "__main__":
    main()
