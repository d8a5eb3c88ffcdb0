"""`python -m services.paper`: the paper broker as a process."""

from libs.process import run
from services.paper.main import main

if __name__ == "__main__":
    run(main, service="paper")
