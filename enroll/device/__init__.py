"""The device agent: a device's whole life with its certificate in one command, ``ironroot-device``.

    ironroot-device up --url https://ca.example:8443 --fleet ecc-devices --serial P-1 --token-file token --state /var/lib/ironroot-device
    ironroot-device run --state /var/lib/ironroot-device

An EST client (RFC 7030, RFC 8951) on the standard library and ``pkix`` alone. Rooms: ``main`` (command line), ``commands`` (what
each does), ``agent`` (enrol and renew, two-phase), ``est`` (the wire), ``trust`` (first contact), ``credential`` (keys,
certificates, paths), ``folder`` (what is on disk, and what holds after a kill), ``schedule`` (renewal window, retries), ``clock``.
"""
