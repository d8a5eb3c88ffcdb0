"""Why something cannot be replayed. Each message names the thing and the way out.

ReplayError
├── UnknownCall       there is no call of that id
├── UnknownVersion    the prompt has no such version
└── NotReplayable     what is there does not allow it
    ├── NotKept           messages, inputs or reply were not kept, or are kept no longer
    ├── NotOurs           no prompt here stands behind the call: a client of the gateway made it, or the sidecar
    ├── ContentChanged    the version does not say any more what it said when the call was made
    └── InputsDoNotFit    the stored inputs cannot be rendered by the other version
"""


class ReplayError(Exception):
    """Something cannot be replayed."""


class UnknownCall(ReplayError):
    """There is no call of that id."""


class UnknownVersion(ReplayError):
    """The prompt has no such version."""


class NotReplayable(ReplayError):
    """What is there does not allow the replay."""


class NotKept(NotReplayable):
    """Messages, inputs or reply are not there."""


class NotOurs(NotReplayable):
    """The call came from a client of the gateway, or its prompt is not among those here."""


class ContentChanged(NotReplayable):
    """The version's content is not what the call was made with."""


class InputsDoNotFit(NotReplayable):
    """The other version cannot be rendered with the stored inputs."""
