"""`python -m adapter_geometry` is the command `adapter-geometry`."""

from adapter_geometry.cli import main

if __name__ == "__main__":
    main()
