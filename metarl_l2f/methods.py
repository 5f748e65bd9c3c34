"""Methods by name: what pictures call them. Their constants are in rl/settings.py and supervised/settings.py."""

LABELS = {"maml-two-sigmas": "MAML, two sigmas", "l2f-paper": "L2F as published"}
"""Of methods whose name in capitals would not do."""


def label_of(method: str) -> str:
    """A method's name as titles and legends write it, such as MAML for maml."""
    return LABELS.get(method, method.upper())
