"""What is wrong on our side of a model call. A model's failure is never raised: it is an `Answer`.

LLMError
├── PromptError           our own mistake: wording, schema or the variables given
│   ├── PromptFileError       the prompts' file or its lock cannot be used; names file, key, version and field
│   ├── UnknownPrompt         no such key, or no such version of it
│   ├── InputsRefused         the variables do not fit the version's inputs schema
│   ├── SamplingRefused       a sampling value of the call cannot be used
│   └── RenderFailed          the template cannot be rendered with these variables
└── ExperimentError       LLM_AB_BUCKETS or an `experiment:` cannot be used; names the key and the version
"""


class LLMError(Exception):
    """A model cannot be asked because of something on our side."""


class PromptError(LLMError):
    """A prompt cannot be used."""


class PromptFileError(PromptError):
    """The prompts' file or its lock cannot be used."""


class UnknownPrompt(PromptError):
    """No such key, or no such version of it."""


class InputsRefused(PromptError):
    """The variables do not fit the version's inputs schema."""


class SamplingRefused(PromptError):
    """A sampling value of the call cannot be used."""


class RenderFailed(PromptError):
    """The template cannot be rendered with these variables."""


class ExperimentError(LLMError):
    """An experiment names something that does not exist, or cannot be read."""
