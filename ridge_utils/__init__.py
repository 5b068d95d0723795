"""Executable reproduction of *The Generalization Ridge* (arXiv 2507.05387).

The modules stand in the order in which data flows through them:

``tasks`` (prompts and targets) → ``models`` (weights, blocks) → ``representations`` (hidden states at the last prompt
token) and ``generation`` (over decoding steps) → ``information`` (``quadrature`` for large numbers of samples),
``sequences``, ``early_exit``, ``attention`` and ``residual_scaling`` (numbers per layer) → ``measures`` (tables) →
``statistics`` and ``results`` → ``plotting`` and ``reports``. ``training`` fine-tunes a model before it is measured,
``study`` puts a notebook's model, task and fine-tunings together, ``profiles`` are named parameter sets, ``sweep``
makes many runs of them, ``batches`` halves what does not fit into memory, ``store`` and ``cache`` keep what took long,
``paper`` holds the numbers that the paper reports, ``claims`` puts ours beside them, and ``reproducibility`` says how
far ours may move on another machine. ``benchmarks`` reads what ``make bench`` measured.

The audit adds ``geometry``, ``estimators``, ``probes``, ``lens``, ``interventions``, ``memorisation`` and
``joint_scaling`` (numbers per layer), ``inference`` (effects with their errors) and ``verdicts`` (the rules of the
protocol); what its pages measure and show is in the package ``audit``. ``words`` writes numbers and words for all of
them.
"""

__version__ = "0.1.0"
