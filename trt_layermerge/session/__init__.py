"""The whole way on live objects: from a model to a merged, built and verified network.

``compress`` is one call for all; a ``session`` has a verb for each step, and keeps what they come
to (``state``). ``settings`` decide; ``images`` come in sets or loaders. The verbs, in order:

- inspect: ``candidates``. measure: ``latency``, of whole ``networks`` and ``pieces`` of them too,
  by the ``meters``; what was measured out of reach is ``recorded``. score: ``scoring``. search:
  ``searching``, with as much ``effort`` as there is time for. How long these take: ``estimate``.
- relax and repair: ``starts``, on images that are ``suitable``. train: ``training``, also for some
  rungs of a race.
- export: ``deployed`` networks. quantize: ``quantizing``, with ``qat``. build: ``building``; what
  was ``built``. bench: ``benching``. verify: ``verifying``; a task's own figure: ``judging``;
  ``showing`` images whose answer changed.
"""
