"""Labels of methods in pictures. The constants of methods are in rl/settings.py and supervised/settings.py."""

LABELS = {"maml-two-sigmas": "MAML, two sigmas", "l2f-paper": "L2F as published"}
"""Labels that are not the method's name in capitals."""


def label_of(method: str) -> str:
    """Return the label of a method in titles and legends, such as MAML for maml."""
    return LABELS.get(method, method.upper())
