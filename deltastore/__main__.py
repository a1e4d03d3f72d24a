"""``python -m deltastore`` is the command line."""

from deltastore.cli.main import run

if __name__ == "__main__":
    run()
