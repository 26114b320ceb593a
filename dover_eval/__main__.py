"""`python -m dover_eval`, the same as `dover-eval`."""

from dover_eval.cli import main

if __name__ == "__main__":
    main()
