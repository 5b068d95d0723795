"""Executable reproduction of *The Generalization Ridge* (arXiv 2507.05387).

Data flow one way: ``tasks`` (prompts and targets) → ``models`` (weights, blocks) → ``training`` and ``representations``
(checkpoints, hidden states at the last prompt token) → ``information``, ``early_exit``, ``attention``,
``residual_scaling`` (numbers per layer) → ``measures`` and ``results`` (tables) → ``figures``. The package ``audit``
holds the measures that the paper does not have, ``run`` the commands; the core knows neither. The page "How the house
is built" of the book draws it.
"""

__version__ = "0.1.0"
