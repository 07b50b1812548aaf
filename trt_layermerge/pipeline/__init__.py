"""Runs: the stages in order, each skipped while its inputs are unchanged.

The work itself is done by the verbs of a session on live objects (``trt_layermerge.session``); here
is what a folder and a recipe add to it.

- What is asked for: ``recipe``, of the ``sections``, and the ``options`` of a caller; ``api`` opens
  the run and does its stages; ``preflight`` looks for mistakes first, and for ``room`` on the disk;
  how long it is ``expected`` to take is told;
  ``pretrained`` networks bring their preprocessing; ``launched`` is for launched processes.
- ``several`` speed-ups get a run each, from the same tables.
- A ``run`` has a ``folder`` and a session; a ``stage`` knows when it is up to date; ``data_files``
  and ``versions`` are among the reasons. ``status`` tells of all this without doing anything.
- What a stage reads of an earlier one's ``files`` is checked there.
- On a device out of reach ``remote`` hands out jobs, and ``agent`` answers them.
- ``bench_page`` is for ``report``, and ``packaging`` for ``package``.
"""
