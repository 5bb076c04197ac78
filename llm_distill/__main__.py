"The command as a module: `python -m llm_distill`, `torchrun -m llm_distill`"
from .cli import main

if __name__ == '__main__': raise SystemExit(main())
