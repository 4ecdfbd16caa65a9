"""The PKCS#11 door: p11-kit's RPC protocol on a Unix socket, so that ``p11-kit-client.so`` makes the simulator a token for any program.

    rpc           frames and values; sans-IO
    table         the calls: numbers, names, what goes in and comes out
    state         what one connection has open: sessions, logins, handles, operations
    calls_*       what each call does
    door          the socket

See docs/pkcs11.md.
"""
