"""`python -m hf_mass`."""

from hf_mass.cli.main import main

if __name__ == "__main__":
    main()
