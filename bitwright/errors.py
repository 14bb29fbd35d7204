"""The two ways a run ends early on purpose. Anything else that escapes is a fault of ours (exit code 1)."""


class BadRequest(Exception):
    """What was asked cannot be done; the message is one sentence with the cause and the remedy (exit code 2)."""


class BrokenPromise(Exception):
    """The work was done but a budget or a gate does not hold (exit code 3)."""
