"""`python -m services.forecast`: the forecast loop as a process.

The worker process imports this module again when it starts, so nothing heavy is imported at its top.
"""

if __name__ == "__main__":
    from libs.process import run
    from services.forecast.main import main

    run(main, service="forecast")
