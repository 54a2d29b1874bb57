"""`python -m nemo_cascade` (also under torchrun): the same commands as the `nemo-cascade` script."""

from nemo_cascade.cascade.cli import main

# Saving a distributed checkpoint spawns processes, which import this module again.
if __name__ == "__main__":
    main()
