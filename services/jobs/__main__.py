"""`python -m services.jobs`: everything periodic, as a process."""

from libs.process import run
from services.jobs.main import main

if __name__ == "__main__":
    run(main, service="jobs")
