"""The laboratory: faults on purpose, in a simulator that was started with ``--lab``. ``scenario`` is the file, ``lab`` the engine."""
