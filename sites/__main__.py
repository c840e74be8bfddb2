"""`python -m sites` is `ddm-site`; torchrun starts it so: `torchrun -m sites train …`."""

from sites.cli.main import main

if __name__ == "__main__":
    main()
