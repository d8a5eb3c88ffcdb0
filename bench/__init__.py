"""Benches: speed as ratios within one run, CPU time per unit of work, counts. They print figures and nothing else."""

import logging

import structlog

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
