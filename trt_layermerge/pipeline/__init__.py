"""The stages in order, each skipped while its inputs are unchanged.

Where to look, in the order in which a run needs it:

- What is asked for: ``recipe``, of the ``sections``, and the ``options`` of a caller; ``api`` opens
  the run and does its stages; ``preflight`` looks for mistakes first; ``together`` is for launched
  processes.
- What all stages share: the ``context``, on a ``folder``; a ``stage`` knows when it is up to date;
  ``data_files`` and ``versions`` are among the reasons.
- Networks that come in have a room of their own, ``models``; ``pretrained`` ones bring their
  preprocessing.
- ``latency``: whole ``networks`` beside blocks; on a device out of reach ``remote`` hands out jobs,
  and their answers are ``recorded``; ``agent`` answers them.
- ``search``: the ``objective``, the loop that is ``closing`` in on the best plan, its finalists
  scored ``joint``, the ``race`` of the best, and the ``choosing``.
- ``finetune``: ``repaired`` networks and other ``starts``; ``training`` them.
- ``calibrate``: ``qat`` trains with int8's rounding.
- ``build``, ``bench``, ``verify``, ``package`` and ``report``: ``deployed`` has the ONNX model of a
  precision, ``built`` the engines that there are; ``benching``, ``verifying``, ``packaging`` and
  ``bench_page`` do what their stages ask for.
"""
