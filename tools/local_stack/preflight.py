"""Reads every setting and the prompts before anything is started, so that a mistake is told at once."""

from libs.db.engine import DatabaseSettings
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.settings import load
from libs.trading.broker.settings import BrokerSettings
from tools.env_example import settings_classes


def check_configuration() -> None:
    """Raise what a service would end with at its start, naming the variable, the file or the version."""
    for settings in settings_classes():
        if settings is not DatabaseSettings:  # the stack itself fills DATABASE_URL in
            load(settings)
    load(BrokerSettings).address()
    models = load(LLMSettings)
    Prompts.build(Registry.load(models.prompts_file, models.prompts_lock), models.llm_ab_buckets)
