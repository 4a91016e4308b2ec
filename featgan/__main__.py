"""Run the `featgan` command with `python -m featgan`."""

from featgan.cli.main import main

if __name__ == "__main__":
    main()
